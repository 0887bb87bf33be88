# The Flex Templates in use, which run images by their digests. image_tag selects the build.

locals {
  # The environment of every job of a template.
  template_environment = merge(local.network_environment, {
    serviceAccountEmail = google_service_account.worker.email
    tempLocation        = "gs://${google_storage_bucket.runs.name}/temp"
    stagingLocation     = "gs://${google_storage_bucket.runs.name}/staging"
    maxWorkers          = var.max_workers
  })
}

resource "google_storage_bucket_object" "template" {
  for_each = toset(["curate", "score", "select"])

  bucket       = google_storage_bucket.datarater.name
  name         = "templates/${each.value}.json"
  content_type = "application/json"

  content = jsonencode({
    image    = local.images[each.value]
    sdkInfo  = { language = "PYTHON" }
    metadata = jsondecode(file("${path.module}/../dataflow/${each.value}.json"))
    defaultEnvironment = merge(local.template_environment, {
      sdkContainerImage = local.images["worker"]
      machineType       = var.machine_type
    })
  })
}

# Scores on GPUs; select then runs on the machines of the template above.
resource "google_storage_bucket_object" "gpu_template" {
  for_each = toset(var.gpu_image_tag == "" ? [] : ["score-on-gpu"])

  bucket       = google_storage_bucket.datarater.name
  name         = "templates/${each.value}.json"
  content_type = "application/json"

  content = jsonencode({
    image    = local.gpu["score"]
    sdkInfo  = { language = "PYTHON" }
    metadata = jsondecode(file("${path.module}/../dataflow/score.json"))
    defaultEnvironment = merge(local.template_environment, {
      sdkContainerImage     = local.gpu["worker"]
      machineType           = var.gpu_machine_type
      additionalExperiments = ["worker_accelerator=${var.gpu_accelerator}", "no_use_multiple_sdk_containers"]
    })
  })
}
