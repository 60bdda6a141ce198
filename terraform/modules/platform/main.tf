# The whole of Everloop's AWS account: dev and prod are this module with other sizes.

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

data "aws_availability_zones" "available" {
  #checkov:skip=CKV_AWS_394: the first three are taken, however many there come to be
  state = "available"

  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

module "vpc" {
  source = "../vpc"

  name               = var.name
  cidr               = var.vpc_cidr
  availability_zones = slice(data.aws_availability_zones.available.names, 0, 3)
  single_nat_gateway = var.single_nat_gateway
  kms_key_arn        = aws_kms_key.this.arn
  log_retention_days = var.log_retention_days
}

module "eks" {
  source = "../eks"

  name                 = var.name
  kubernetes_version   = var.kubernetes_version
  subnet_ids           = module.vpc.private_subnet_ids
  public_access_cidrs  = var.api_public_access_cidrs
  admin_principal_arns = var.admin_principal_arns
  node_groups          = var.node_groups
  kms_key_arn          = aws_kms_key.this.arn
  log_retention_days   = var.log_retention_days
}

module "msk" {
  source = "../msk"

  name                      = var.name
  vpc_id                    = module.vpc.vpc_id
  subnet_ids                = module.vpc.private_subnet_ids
  client_security_group_ids = { nodes = module.eks.cluster_security_group_id }
  instance_type             = var.kafka.instance_type
  brokers_per_zone          = var.kafka.brokers_per_zone
  volume_gib                = var.kafka.volume_gib
  open_monitoring           = var.kafka.open_monitoring
  kms_key_arn               = aws_kms_key.this.arn
  log_retention_days        = var.log_retention_days
}

module "rds" {
  source = "../rds"

  name                      = var.name
  vpc_id                    = module.vpc.vpc_id
  subnet_ids                = module.vpc.private_subnet_ids
  client_security_group_ids = { nodes = module.eks.cluster_security_group_id }
  password                  = local.stored_credentials.database_password
  password_version          = var.credentials_version
  instance_class            = var.database.instance_class
  storage_gib               = var.database.storage_gib
  max_storage_gib           = var.database.max_storage_gib
  multi_az                  = var.database.multi_az
  backup_days               = var.database.backup_days
  deletion_protection       = var.protect_data
  kms_key_arn               = aws_kms_key.this.arn
  log_retention_days        = var.log_retention_days
}

module "bucket" {
  source   = "../s3"
  for_each = toset(["data", "dvc", "mlflow"])

  name                   = "${var.name}-${each.key}-${data.aws_caller_identity.current.account_id}"
  noncurrent_days        = var.noncurrent_days
  infrequent_access_days = each.key == "dvc" ? var.old_versions_days : null # shards come and go within days
  force_destroy          = !var.protect_data
  kms_key_arn            = aws_kms_key.this.arn
}

module "ecr" {
  source = "../ecr"

  name = var.name
  repositories = setunion(
    [for service in ["ingest", "trainer", "registry-gateway", "inference", "monitor"] : "everloop-${service}"],
    ["models"], # what `everloop package` builds
  )
  force_delete = !var.protect_data
  kms_key_arn  = aws_kms_key.this.arn
}

module "cloudwatch" {
  source = "../cloudwatch"

  name                = var.name
  alarm_emails        = var.alarm_emails
  database_identifier = module.rds.identifier
  kafka_cluster_name  = module.msk.cluster_name
  kafka_broker_count  = module.msk.broker_count
  kms_key_arn         = aws_kms_key.this.arn
  log_retention_days  = var.log_retention_days
}
