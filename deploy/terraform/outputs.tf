output "bucket" {
  description = "The bucket."
  value       = "gs://${google_storage_bucket.datarater.name}"
}

output "image" {
  description = "The image without its tag; deploy/cloudbuild.yaml pushes to it."
  value       = local.image
}

output "templates" {
  description = "The Flex Templates, for gcloud dataflow flex-template run --template-file-gcs-location."
  value       = { for name, object in google_storage_bucket_object.template : name => "gs://${object.bucket}/${object.name}" }
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
