"""Tools for running elsewhere: clusters, images, templates and schedules."""
