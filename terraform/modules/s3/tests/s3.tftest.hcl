mock_provider "aws" {
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::everloop-data" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
}

variables {
  name        = "everloop-data"
  kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/1"
}

run "old_objects_stay_where_nothing_is_said" {
  assert {
    condition     = length(aws_s3_bucket_lifecycle_configuration.this.rule) == 2
    error_message = "no transition"
  }

  assert {
    condition     = aws_s3_bucket_versioning.this.versioning_configuration[0].status == "Enabled"
    error_message = "versioned"
  }
}

run "old_objects_move_where_asked" {
  variables {
    infrequent_access_days = 90
  }

  assert {
    condition     = length(aws_s3_bucket_lifecycle_configuration.this.rule) == 3
    error_message = "a transition besides"
  }
}

run "sooner_than_s3_takes" {
  command = plan

  variables {
    infrequent_access_days = 7
  }

  expect_failures = [var.infrequent_access_days]
}
