# The bucket that holds the states of the other roots. Its own state stays where it was run: it is three resources, and
# `terraform import` brings them back.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0"
    }
  }
}

variable "region" {
  description = "AWS region."
  type        = string
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { project = "everloop", managed-by = "terraform" }
  }
}

data "aws_caller_identity" "current" {}

resource "aws_kms_key" "this" {
  #checkov:skip=CKV2_AWS_64: the default policy: the account's IAM decides
  description         = "Terraform states of Everloop"
  enable_key_rotation = true
}

module "state" {
  source = "../modules/s3"

  name            = "everloop-terraform-${data.aws_caller_identity.current.account_id}"
  kms_key_arn     = aws_kms_key.this.arn
  noncurrent_days = 365 # states of a year back
}

output "bucket" {
  description = "For `terraform init -backend-config=bucket=…` of the other roots."
  value       = module.state.name
}
