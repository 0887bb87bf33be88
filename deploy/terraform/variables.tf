variable "project" {
  description = "The Google Cloud project's id."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "A project id has 6 to 30 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "region" {
  description = "The region of the workers, the bucket and the registry; one region for all, so that reading costs no egress. Example: europe-west4"
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "Give a region such as europe-west4, not a zone such as europe-west4-a."
  }
}

variable "bucket" {
  description = "The name of the bucket to create for raters, configs, templates, and the journal and published manifests of the nightly batch. Workers only read it."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "A bucket's name has 3 to 63 lower-case letters, digits, dots, hyphens and underscores, without gs://."
  }
}

variable "runs_bucket" {
  description = "The name of the bucket to create for what workers write: run folders, and Dataflow's temporary files under temp/ and staging/. Empty: the name of the bucket with -runs."
  type        = string
  default     = ""

  validation {
    condition     = var.runs_bucket == "" || can(regex("^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$", var.runs_bucket)) && var.runs_bucket != var.bucket
    error_message = "Give the name of a bucket other than var.bucket, without gs://."
  }
}

variable "input_buckets" {
  description = "The names of the buckets that the crawler writes. They are only read."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for name in var.input_buckets : !startswith(name, "gs://") && !strcontains(name, "/")])
    error_message = "Give only the names of the buckets, without gs:// and without a path."
  }
}

variable "image_tag" {
  description = "The tag of the image to run, as pushed by deploy/cloudbuild.yaml. To roll back, give the previous tag."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}$", var.image_tag)) && var.image_tag != "latest"
    error_message = "Give the tag of one build, such as the short hash of a commit. latest would change under a running job."
  }
}

variable "gpu_image_tag" {
  description = "The tag of an image for GPUs (_PACKAGES=worker cuda12), for the template score-on-gpu. Empty: no such template."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^([A-Za-z0-9_][A-Za-z0-9_.-]{0,100})?$", var.gpu_image_tag)) && var.gpu_image_tag != "latest"
    error_message = "Give the tag of one build, such as the short hash of a commit and -cuda12."
  }
}

variable "gpu_machine_type" {
  description = "The machine type of the template score-on-gpu. Each machine runs one process."
  type        = string
  default     = "g2-standard-4"
}

variable "gpu_accelerator" {
  description = "The GPU of each machine of the template score-on-gpu, as Dataflow's worker_accelerator."
  type        = string
  default     = "type:nvidia-l4;count:1;install-nvidia-driver"

  validation {
    condition     = can(regex("^type:[a-z0-9-]+;count:1;install-nvidia-driver", var.gpu_accelerator))
    error_message = "Give type:TYPE;count:1;install-nvidia-driver. A process uses one GPU, and each machine runs one process."
  }
}

variable "network" {
  description = "The VPC network of the workers. Empty: that of the subnetwork, or the project's default."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^([a-z]([a-z0-9-]*[a-z0-9])?)?$", var.network))
    error_message = "Give the name of a network. For a shared VPC give only subnetwork, as its full address."
  }
}

variable "subnetwork" {
  description = "The subnetwork of the workers: regions/REGION/subnetworks/NAME, or the full address of one of a shared VPC. Without public addresses it needs Private Google Access."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^((https://www\\.googleapis\\.com/compute/v1/projects/[^/]+/)?regions/[^/]+/subnetworks/[^/]+)?$", var.subnetwork))
    error_message = "Give regions/REGION/subnetworks/NAME, or https://www.googleapis.com/compute/v1/projects/HOST/regions/REGION/subnetworks/NAME."
  }
}

variable "public_ips" {
  description = "Whether workers have public addresses. Without, they reach Google's services alone: inputs on other stores need Cloud NAT."
  type        = bool
  default     = false

  validation {
    condition     = var.public_ips || var.subnetwork != ""
    error_message = "Give a subnetwork with Private Google Access, or public_ips = true."
  }
}

variable "batch_config" {
  description = "The address of the nightly batch's config. Example: gs://my-bucket/config/batch.yaml"
  type        = string

  validation {
    condition     = can(regex("^gs://[^/]+/.+\\.ya?ml$", var.batch_config))
    error_message = "Give a YAML file in Cloud Storage, such as gs://my-bucket/config/batch.yaml."
  }
}

variable "batch_schedule" {
  description = "When the batch starts: a cron expression in batch_time_zone."
  type        = string
  default     = "30 2 * * *"

  validation {
    condition     = length(split(" ", var.batch_schedule)) == 5
    error_message = "Give five fields separated by single spaces: minute, hour, day of month, month, day of week."
  }
}

variable "batch_time_zone" {
  description = "The time zone of the schedule. The date of the batch is always in UTC."
  type        = string
  default     = "Etc/UTC"
}

variable "batch_paused" {
  description = "Whether to pause the schedule. The job can still be started by hand."
  type        = bool
  default     = false
}

variable "batch_hours" {
  description = "Hours after which a nightly launch is stopped. The next one resumes it."
  type        = number
  default     = 20

  validation {
    condition     = var.batch_hours >= 1 && var.batch_hours <= 24
    error_message = "Give 1 to 24 hours."
  }
}

variable "machine_type" {
  description = "The machine type of Dataflow's workers. Each vCPU runs one process; plan 2 GB for each, plus the rater."
  type        = string
  default     = "n2-standard-4"
}

variable "max_workers" {
  description = "The maximum number of Dataflow's workers. deploy/RUNBOOK.md shows how to calculate it."
  type        = number
  default     = 10

  validation {
    condition     = var.max_workers >= 1 && floor(var.max_workers) == var.max_workers
    error_message = "Give a whole number above 0."
  }
}

variable "temporary_days" {
  description = "Days after which files under temp/ and staging/ are deleted. Must be longer than the longest job."
  type        = number
  default     = 14

  validation {
    condition     = var.temporary_days >= 7
    error_message = "Give at least 7: a running job still reads the files it staged."
  }
}

variable "noncurrent_days" {
  description = "Days for which replaced and deleted files can be restored."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1
    error_message = "Give at least 1."
  }
}

variable "notification_channels" {
  description = "Cloud Monitoring channels (projects/.../notificationChannels/...) to notify when a nightly batch fails. Without any there is no alert."
  type        = list(string)
  default     = []
}
