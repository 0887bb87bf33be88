# Every night Cloud Scheduler starts a Cloud Run job. The job runs `datarater batch` for the day
# that has ended (deploy/nightly.sh), which submits to Dataflow and waits.

resource "google_cloud_run_v2_job" "batch" {
  name                = "datarater-batch"
  location            = var.region
  deletion_protection = false

  template {
    task_count  = 1
    parallelism = 1

    template {
      service_account = google_service_account.launcher.email
      timeout         = "${var.batch_hours * 3600}s"
      # Cloud Run cannot tell exit codes apart. After a signal (75) a retry resumes. After a kill
      # the workers keep the lease until they have scored everything, which may outlast the retries;
      # the next night then first publishes what is left. After drift (4) or wrong usage (2) a retry
      # fails in the same way and changes nothing.
      max_retries = 3

      containers {
        image   = local.images["command"]
        command = ["datarater-nightly"]
        args = concat([
          "--config=${var.batch_config}",
          "--runner=DataflowRunner",
          "--project=${var.project}",
          "--region=${var.region}",
          "--temp_location=gs://${google_storage_bucket.runs.name}/temp",
          "--staging_location=gs://${google_storage_bucket.runs.name}/staging",
          "--sdk_container_image=${local.images["worker"]}",
          "--sdk_location=container",
          "--service_account_email=${google_service_account.worker.email}",
          "--worker_machine_type=${var.machine_type}",
          "--max_num_workers=${var.max_workers}",
        ], local.network_flags)

        # Replace ${BUCKET}, ${RUNS_BUCKET} and ${PROJECT} in the config.
        env {
          name  = "BUCKET"
          value = google_storage_bucket.datarater.name
        }
        env {
          name  = "RUNS_BUCKET"
          value = google_storage_bucket.runs.name
        }
        env {
          name  = "PROJECT"
          value = var.project
        }

        resources {
          limits = {
            cpu    = "2"
            memory = "4Gi"
          }
        }
      }
    }
  }

  depends_on = [google_project_service.needed]
}

resource "google_cloud_scheduler_job" "nightly" {
  name             = "datarater-nightly"
  region           = var.region
  description      = "Starts the nightly batch."
  schedule         = var.batch_schedule
  time_zone        = var.batch_time_zone
  paused           = var.batch_paused
  attempt_deadline = "180s"

  retry_config {
    retry_count          = 3
    min_backoff_duration = "30s"
  }

  http_target {
    http_method = "POST"
    uri         = "https://run.googleapis.com/v2/${google_cloud_run_v2_job.batch.id}:run"

    oauth_token {
      service_account_email = google_service_account.scheduler.email
      scope                 = "https://www.googleapis.com/auth/cloud-platform"
    }
  }

  depends_on = [google_cloud_run_v2_job_iam_member.scheduler]
}

resource "google_monitoring_alert_policy" "failed_night" {
  count = length(var.notification_channels) > 0 ? 1 : 0

  display_name          = "DataRater: a nightly batch failed"
  combiner              = "OR"
  notification_channels = var.notification_channels

  conditions {
    display_name = "an execution of datarater-batch failed"

    condition_threshold {
      filter = join(" AND ", [
        "resource.type = \"cloud_run_job\"",
        "resource.labels.job_name = \"${google_cloud_run_v2_job.batch.name}\"",
        "metric.type = \"run.googleapis.com/job/completed_execution_count\"",
        "metric.labels.result = \"failed\"",
      ])
      comparison      = "COMPARISON_GT"
      threshold_value = 0
      duration        = "0s"

      aggregations {
        alignment_period   = "300s"
        per_series_aligner = "ALIGN_DELTA"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "Read the last line of the execution's log and its exit code; deploy/RUNBOOK.md explains each code. 4 means drift, too many rejected records or too few documents: read the day's run record first."
  }
}
