locals {
  services = [
    "artifactregistry.googleapis.com",
    "cloudbuild.googleapis.com",
    "cloudscheduler.googleapis.com",
    "compute.googleapis.com",
    "containeranalysis.googleapis.com",
    "dataflow.googleapis.com",
    "iam.googleapis.com",
    "monitoring.googleapis.com",
    "run.googleapis.com",
    "storage.googleapis.com",
  ]
  runs_bucket = coalesce(var.runs_bucket, "${var.bucket}-runs")
  image       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}/datarater"

  # Each image by its digest: what runs is what the tag named when this was applied.
  images = { for role, found in data.google_artifact_registry_docker_image.built : role => found.self_link }
  gpu    = { for role, found in data.google_artifact_registry_docker_image.gpu : role => found.self_link }

  # Flags of Beam and fields of a template for the workers' network.
  network_flags = concat(
    var.network == "" ? [] : ["--network=${var.network}"],
    var.subnetwork == "" ? [] : ["--subnetwork=${var.subnetwork}"],
    var.public_ips ? [] : ["--no_use_public_ips"],
  )
  network_environment = merge(
    { ipConfiguration = var.public_ips ? "WORKER_IP_PUBLIC" : "WORKER_IP_PRIVATE" },
    var.network == "" ? {} : { network = var.network },
    var.subnetwork == "" ? {} : { subnetwork = var.subnetwork },
  )
}

resource "google_project_service" "needed" {
  for_each = toset(local.services)

  service            = each.value
  disable_on_destroy = false
}

# What workers must not change: raters, configs, templates, and the nightly batch's journal and
# published manifests. Versioning protects them from manual mistakes.
resource "google_storage_bucket" "datarater" {
  name                        = var.bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false

  versioning {
    enabled = true
  }

  lifecycle_rule {
    condition {
      days_since_noncurrent_time = var.noncurrent_days
    }
    action {
      type = "Delete"
    }
  }

  lifecycle_rule {
    condition {
      age = 2
    }
    action {
      type = "AbortIncompleteMultipartUpload"
    }
  }

  depends_on = [google_project_service.needed]
}

# What workers write: run folders, and the files that a job stages. A worker parses files of unknown
# origin, so nothing here is trusted beyond its own run: a published manifest has the SHA-256 of every
# kept file.
resource "google_storage_bucket" "runs" {
  name                        = local.runs_bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = false

  versioning {
    enabled = true
  }

  lifecycle_rule {
    condition {
      age            = var.temporary_days
      matches_prefix = ["temp/", "staging/"]
    }
    action {
      type = "Delete"
    }
  }

  lifecycle_rule {
    condition {
      days_since_noncurrent_time = var.noncurrent_days
    }
    action {
      type = "Delete"
    }
  }

  lifecycle_rule {
    condition {
      age = 2
    }
    action {
      type = "AbortIncompleteMultipartUpload"
    }
  }

  depends_on = [google_project_service.needed]
}

# A tag names the same build forever: a job that runs for days starts its last worker from the same
# image as its first.
resource "google_artifact_registry_repository" "images" {
  repository_id = "datarater"
  location      = var.region
  format        = "DOCKER"
  description   = "Images of DataRater's workers, launchers and commands."

  docker_config {
    immutable_tags = true
  }

  depends_on = [google_project_service.needed]
}

data "google_artifact_registry_docker_image" "built" {
  for_each = toset(["worker", "curate", "score", "select", "command"])

  location      = google_artifact_registry_repository.images.location
  repository_id = google_artifact_registry_repository.images.repository_id
  image_name    = "datarater:${var.image_tag}${each.value == "worker" ? "" : "-${each.value}"}"
}

data "google_artifact_registry_docker_image" "gpu" {
  for_each = toset(var.gpu_image_tag == "" ? [] : ["worker", "score"])

  location      = google_artifact_registry_repository.images.location
  repository_id = google_artifact_registry_repository.images.repository_id
  image_name    = "datarater:${var.gpu_image_tag}${each.value == "worker" ? "" : "-${each.value}"}"
}
