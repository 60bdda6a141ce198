# One packaged model by itself, without the platform: on Lambda, on ECS, or on one machine.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0"
    }
  }

  # The bucket comes from ../bootstrap: terraform init -backend-config=bucket=… -backend-config=key=everloop/<model>.tfstate
  backend "s3" {
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { project = "everloop", model = var.name, managed-by = "terraform" }
  }
}

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

locals {
  account        = data.aws_caller_identity.current.account_id
  repository     = regex("^[^/]+/([^:@]+)", var.image)[0]
  repository_arn = "arn:${data.aws_partition.current.partition}:ecr:${var.region}:${local.account}:repository/${local.repository}"
}

resource "aws_kms_key" "this" {
  description         = "Logs and disks of ${var.name}"
  enable_key_rotation = true
  policy              = data.aws_iam_policy_document.key.json
}

data "aws_iam_policy_document" "key" {
  #checkov:skip=CKV_AWS_109: in a key's policy * is this key, and the account must be able to change it
  #checkov:skip=CKV_AWS_111: in a key's policy * is this key
  #checkov:skip=CKV_AWS_356: in a key's policy * is this key
  statement {
    sid       = "AccountDecides"
    actions   = ["kms:*"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["arn:${data.aws_partition.current.partition}:iam::${local.account}:root"]
    }
  }

  statement {
    sid       = "LogsOfThisAccount"
    actions   = ["kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey"]
    resources = ["*"]

    principals {
      type        = "Service"
      identifiers = ["logs.${var.region}.amazonaws.com"]
    }

    condition {
      test     = "ArnLike"
      variable = "kms:EncryptionContext:aws:logs:arn"
      values   = ["arn:${data.aws_partition.current.partition}:logs:${var.region}:${local.account}:log-group:*"]
    }
  }
}

module "lambda" {
  source = "../modules/lambda_model"
  count  = var.runs_on == "lambda" ? 1 : 0

  name        = var.name
  image       = var.image
  caller_arns = var.caller_arns
  kms_key_arn = aws_kms_key.this.arn
}

module "ecs" {
  source = "../modules/ecs_service"
  count  = var.runs_on == "ecs" ? 1 : 0

  name           = var.name
  image          = var.image
  repository_arn = local.repository_arn
  vpc_id         = var.vpc_id
  subnet_ids     = var.subnet_ids
  caller_cidrs   = var.caller_cidrs
  kms_key_arn    = aws_kms_key.this.arn
}

module "ec2" {
  source = "../modules/ec2_single"
  count  = var.runs_on == "ec2" ? 1 : 0

  name           = var.name
  image          = var.image
  repository_arn = local.repository_arn
  vpc_id         = var.vpc_id
  subnet_id      = var.subnet_ids[0]
  caller_cidrs   = var.caller_cidrs
  kms_key_arn    = aws_kms_key.this.arn
}
