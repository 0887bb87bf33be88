"""What it takes to run elsewhere: clusters, images, templates, schedules."""
