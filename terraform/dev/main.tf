# Small and cheap, for trying things: it loses nothing that was acknowledged, but may be away when a zone is.

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
    key          = "everloop/dev.tfstate"
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { project = "everloop", environment = "dev", managed-by = "terraform" }
  }
}

module "platform" {
  source = "../modules/platform"

  name                    = "everloop-dev"
  vpc_cidr                = "10.20.0.0/16"
  single_nat_gateway      = true
  api_public_access_cidrs = var.api_public_access_cidrs
  admin_principal_arns    = var.admin_principal_arns
  alarm_emails            = var.alarm_emails
  protect_data            = false
  noncurrent_days         = 7
  log_retention_days      = 30

  node_groups = {
    services = { instance_types = ["m7i.xlarge", "m6i.xlarge"], min_size = 2, max_size = 4 }
    training = {
      instance_types = ["c7i.2xlarge", "c6i.2xlarge", "m7i.2xlarge"]
      capacity_type  = "SPOT" # a trial that is interrupted is taken up again
      min_size       = 0
      max_size       = 2
      labels         = { "everloop/pool" = "training" }
      taints         = [{ key = "everloop/pool", value = "training", effect = "NO_SCHEDULE" }]
    }
  }

  kafka    = { instance_type = "kafka.t3.small", volume_gib = 20 }
  database = { instance_class = "db.t4g.medium", storage_gib = 20, max_storage_gib = 50, multi_az = false, backup_days = 3 }
}
