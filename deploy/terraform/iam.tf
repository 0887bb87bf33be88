# Four accounts, each with only the rights it needs. None has a key. Every role on a bucket applies
# to that bucket alone.

locals {
  # Workers and the command that launches them write run folders, and read everything else.
  runs = {
    worker   = google_service_account.worker.member
    launcher = google_service_account.launcher.member
  }
  readers = {
    for pair in setproduct(concat([var.bucket], tolist(var.input_buckets)), keys(local.runs)) : "${pair[0]}/${pair[1]}" => {
      bucket = pair[0]
      member = local.runs[pair[1]]
    }
  }
  own_objects = "projects/_/buckets/${var.bucket}/objects"
}

# Dataflow's workers, and the machine that launches a Flex Template.
resource "google_service_account" "worker" {
  account_id   = "datarater-worker"
  display_name = "DataRater: Dataflow workers"
}

# The nightly batch, which submits jobs.
resource "google_service_account" "launcher" {
  account_id   = "datarater-launcher"
  display_name = "DataRater: nightly batch"
}

# Cloud Scheduler, which starts the nightly batch.
resource "google_service_account" "scheduler" {
  account_id   = "datarater-scheduler"
  display_name = "DataRater: schedule"
}

# Cloud Build, which pushes images and lists what is in them.
resource "google_service_account" "builder" {
  account_id   = "datarater-builder"
  display_name = "DataRater: builds"
}

resource "google_storage_bucket_iam_member" "run_folders" {
  for_each = local.runs

  bucket = google_storage_bucket.runs.name
  role   = "roles/storage.objectUser"
  member = each.value
}

# Beam reads the bucket's metadata (storage.buckets.get) before it stages files.
resource "google_storage_bucket_iam_member" "bucket" {
  for_each = local.runs

  bucket = google_storage_bucket.runs.name
  role   = "roles/storage.legacyBucketReader"
  member = each.value
}

# Raters, configs, and the inputs.
resource "google_storage_bucket_iam_member" "inputs" {
  for_each = local.readers

  bucket = each.value.bucket
  role   = "roles/storage.objectViewer"
  member = each.value.member

  depends_on = [google_storage_bucket.datarater]
}

# Only the nightly batch itself, which reads no document, writes its journal and manifests.
resource "google_storage_bucket_iam_member" "launcher" {
  bucket = google_storage_bucket.datarater.name
  role   = "roles/storage.objectUser"
  member = google_service_account.launcher.member

  condition {
    title      = "journal and published manifests"
    expression = "resource.name.startsWith(\"${local.own_objects}/nightly/\")"
  }
}

# The role may also create and read objects in all buckets of the project, where new names under
# templates/ or nightly/ would do harm; the condition withholds that.
resource "google_project_iam_member" "worker" {
  project = var.project
  role    = "roles/dataflow.worker"
  member  = google_service_account.worker.member

  condition {
    title      = "no bucket but that of the runs"
    expression = <<-EOT
      (resource.type != "storage.googleapis.com/Bucket" && resource.type != "storage.googleapis.com/Object") ||
      resource.name == "projects/_/buckets/${local.runs_bucket}" ||
      resource.name.startsWith("projects/_/buckets/${local.runs_bucket}/objects/")
    EOT
  }
}

resource "google_artifact_registry_repository_iam_member" "worker" {
  location   = google_artifact_registry_repository.images.location
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.worker.member
}

resource "google_project_iam_member" "launcher" {
  project = var.project
  role    = "roles/dataflow.developer"
  member  = google_service_account.launcher.member
}

# The launcher submits jobs that run as the worker's account.
resource "google_service_account_iam_member" "launcher_as_worker" {
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.launcher.member
}

resource "google_cloud_run_v2_job_iam_member" "scheduler" {
  location = google_cloud_run_v2_job.batch.location
  name     = google_cloud_run_v2_job.batch.name
  role     = "roles/run.invoker"
  member   = google_service_account.scheduler.member
}

resource "google_artifact_registry_repository_iam_member" "builder" {
  location   = google_artifact_registry_repository.images.location
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.builder.member
}

resource "google_storage_bucket_iam_member" "builder" {
  bucket = google_storage_bucket.datarater.name
  role   = "roles/storage.objectUser"
  member = google_service_account.builder.member

  condition {
    title      = "build sources and SBOMs"
    expression = <<-EOT
      resource.name.startsWith("${local.own_objects}/build/") ||
      resource.name.startsWith("${local.own_objects}/sbom/")
    EOT
  }
}

# gcloud reads the bucket's metadata before it stores an SBOM there.
resource "google_storage_bucket_iam_member" "builder_bucket" {
  bucket = google_storage_bucket.datarater.name
  role   = "roles/storage.legacyBucketReader"
  member = google_service_account.builder.member
}

# Records the SBOM of an image in Artifact Analysis.
resource "google_project_iam_member" "builder_sbom" {
  for_each = toset(["roles/containeranalysis.notes.editor", "roles/containeranalysis.occurrences.editor"])

  project = var.project
  role    = each.value
  member  = google_service_account.builder.member
}

resource "google_project_iam_member" "builder_logs" {
  project = var.project
  role    = "roles/logging.logWriter"
  member  = google_service_account.builder.member
}
