variable "project" {
  description = "The Google Cloud project's id."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "A project id has 6 to 30 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "region" {
  description = "Where workers, bucket and registry are: one region, so that reading costs no egress. Example: europe-west4"
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "A region looks like europe-west4; a zone (europe-west4-a) is none."
  }
}

variable "bucket" {
  description = "The bucket to make: raters, configs, run folders, templates, and Dataflow's temporary files under temp/ and staging/."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "A bucket's name has 3 to 63 lower-case letters, digits, dots, hyphens and underscores, without gs://."
  }
}

variable "input_buckets" {
  description = "Buckets that the crawler writes into, by name; they are read, never written."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for name in var.input_buckets : !startswith(name, "gs://") && !strcontains(name, "/")])
    error_message = "Give the buckets' names alone, without gs:// and without a path."
  }
}

variable "image_tag" {
  description = "The tag of the image to run, as deploy/cloudbuild.yaml pushed it. Rolling back is giving the former tag."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}$", var.image_tag)) && var.image_tag != "latest"
    error_message = "Give one build's tag, such as a commit's short hash; latest would let yesterday's run change today."
  }
}

variable "batch_config" {
  description = "Of the nightly batch: the address of its config. Example: gs://my-bucket/config/batch.yaml"
  type        = string

  validation {
    condition     = can(regex("^gs://[^/]+/.+\\.ya?ml$", var.batch_config))
    error_message = "The config is a YAML file in Cloud Storage, such as gs://my-bucket/config/batch.yaml."
  }
}

variable "batch_schedule" {
  description = "When the batch starts, in cron's notation, in batch_time_zone."
  type        = string
  default     = "30 2 * * *"

  validation {
    condition     = length(split(" ", var.batch_schedule)) == 5
    error_message = "Five fields separated by single spaces: minute, hour, day of month, month, day of week."
  }
}

variable "batch_time_zone" {
  description = "The schedule's time zone. The batch's date is in UTC whatever is given here."
  type        = string
  default     = "Etc/UTC"
}

variable "batch_paused" {
  description = "Whether the schedule rests; the job can still be started by hand."
  type        = bool
  default     = false
}

variable "batch_hours" {
  description = "After so many hours a night's launch is ended; the next one goes on where it stopped."
  type        = number
  default     = 20

  validation {
    condition     = var.batch_hours >= 1 && var.batch_hours <= 24
    error_message = "From 1 to 24 hours."
  }
}

variable "machine_type" {
  description = "Of Dataflow's workers: one process a vCPU, for each of which 2 GB are planned beside the rater."
  type        = string
  default     = "n2-standard-4"
}

variable "max_workers" {
  description = "Of Dataflow's workers, at most; deploy/RUNBOOK.md has the arithmetic."
  type        = number
  default     = 10

  validation {
    condition     = var.max_workers >= 1 && floor(var.max_workers) == var.max_workers
    error_message = "A whole number above 0."
  }
}

variable "temporary_days" {
  description = "Files under temp/ and staging/ are deleted after so many days; longer than the longest job runs."
  type        = number
  default     = 14

  validation {
    condition     = var.temporary_days >= 7
    error_message = "At least 7: a running job still reads what it staged."
  }
}

variable "noncurrent_days" {
  description = "Replaced and deleted files can be brought back for so many days."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1
    error_message = "At least 1."
  }
}

variable "notification_channels" {
  description = "Cloud Monitoring channels (projects/.../notificationChannels/...) that hear of a night that failed; none, no alert."
  type        = list(string)
  default     = []
}
