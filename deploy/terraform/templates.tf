# The Flex Templates in use. Every build writes its own to templates/TAG/; image_tag selects one.

resource "google_storage_bucket_object" "template" {
  for_each = toset(["curate", "score", "select"])

  bucket       = google_storage_bucket.datarater.name
  name         = "templates/${each.value}.json"
  content_type = "application/json"

  content = jsonencode({
    image    = "${local.image}:${var.image_tag}-${each.value}"
    sdkInfo  = { language = "PYTHON" }
    metadata = jsondecode(file("${path.module}/../dataflow/${each.value}.json"))
    defaultEnvironment = {
      serviceAccountEmail = google_service_account.worker.email
      sdkContainerImage   = "${local.image}:${var.image_tag}"
      tempLocation        = "gs://${google_storage_bucket.datarater.name}/temp"
      stagingLocation     = "gs://${google_storage_bucket.datarater.name}/staging"
      machineType         = var.machine_type
      maxWorkers          = var.max_workers
    }
  })
}
