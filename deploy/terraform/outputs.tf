output "bucket" {
  description = "The bucket of raters, configs, templates and published manifests."
  value       = "gs://${google_storage_bucket.datarater.name}"
}

output "runs_bucket" {
  description = "The bucket of run folders."
  value       = "gs://${google_storage_bucket.runs.name}"
}

output "image" {
  description = "The image without its tag; deploy/cloudbuild.yaml pushes to it."
  value       = local.image
}

output "digests" {
  description = "The images in use, by digest; those for GPUs have names that end with -gpu."
  value       = merge(local.images, { for role, image in local.gpu : "${role}-gpu" => image })
}

output "templates" {
  description = "The Flex Templates, for gcloud dataflow flex-template run --template-file-gcs-location."
  value       = { for name, object in merge(google_storage_bucket_object.template, google_storage_bucket_object.gpu_template) : name => "gs://${object.bucket}/${object.name}" }
}

output "service_accounts" {
  description = "The email addresses of the service accounts."
  value = {
    worker    = google_service_account.worker.email
    launcher  = google_service_account.launcher.email
    scheduler = google_service_account.scheduler.email
    builder   = google_service_account.builder.email
  }
}

output "run_tonight_now" {
  description = "The command that starts the nightly batch by hand."
  value       = "gcloud run jobs execute ${google_cloud_run_v2_job.batch.name} --region ${var.region} --wait"
}
