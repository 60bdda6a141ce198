# Three zones, each of which may go.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0"
    }
  }

  # The bucket comes from ../bootstrap: terraform init -backend-config=bucket=…
  backend "s3" {
    key          = "everloop/prod.tfstate"
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { project = "everloop", environment = "prod", managed-by = "terraform" }
  }
}

module "platform" {
  source = "../modules/platform"

  name                    = "everloop-prod"
  vpc_cidr                = "10.30.0.0/16"
  single_nat_gateway      = false
  api_public_access_cidrs = var.api_public_access_cidrs
  admin_principal_arns    = var.admin_principal_arns
  alarm_emails            = var.alarm_emails

  node_groups = {
    services = { instance_types = ["m7i.2xlarge"], min_size = 3, max_size = 9 }
    training = {
      instance_types = ["c7i.4xlarge"]
      min_size       = 0
      max_size       = 6
      disk_gib       = 100
      labels         = { "everloop/pool" = "training" }
      taints         = [{ key = "everloop/pool", value = "training", effect = "NO_SCHEDULE" }]
    }
  }

  kafka    = { instance_type = "kafka.m7g.large", volume_gib = 250 }
  database = { instance_class = "db.m7g.large", storage_gib = 100, max_storage_gib = 500, multi_az = true, backup_days = 14 }
}
