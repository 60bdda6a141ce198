# What the chart's ExternalSecret reads (`credentials.external.entry`). The values are made in passing and written only to
# Secrets Manager, so that no state file and no plan holds them. To rotate both, raise credentials_version.

ephemeral "aws_secretsmanager_random_password" "this" {
  for_each = toset(["database_password", "auth_token"])

  password_length     = 40
  exclude_punctuation = true
}

resource "aws_secretsmanager_secret" "this" {
  #checkov:skip=CKV2_AWS_57: rotated by credentials_version: the pods that hold the old values must be restarted with it
  name                    = "${var.name}/credentials"
  description             = "Password of PostgreSQL, and the token that joins Ray"
  kms_key_id              = aws_kms_key.this.arn
  recovery_window_in_days = var.protect_data ? 30 : 0
}

resource "aws_secretsmanager_secret_version" "this" {
  secret_id                = aws_secretsmanager_secret.this.id
  secret_string_wo         = jsonencode({ for key, made in ephemeral.aws_secretsmanager_random_password.this : key => made.random_password })
  secret_string_wo_version = var.credentials_version
}

# The database gets what was stored, not what was made: a run that stops between the two is completed by the next.
ephemeral "aws_secretsmanager_secret_version" "this" {
  secret_id  = aws_secretsmanager_secret.this.id
  version_id = aws_secretsmanager_secret_version.this.version_id
}

locals {
  stored_credentials = jsondecode(ephemeral.aws_secretsmanager_secret_version.this.secret_string)
}
