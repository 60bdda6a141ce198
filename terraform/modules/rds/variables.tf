variable "name" {
  description = "Name of the instance."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,24}$", var.name))
    error_message = "Lower-case letters, digits and hyphens, 2 to 25 characters, a letter first."
  }
}

variable "vpc_id" {
  description = "VPC of the instance."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets, in at least two zones."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "RDS wants subnets in at least two zones."
  }
}

variable "client_security_group_ids" {
  description = "Security groups whose members may connect, by a name for each."
  type        = map(string)
}

variable "username" {
  description = "User that owns the databases."
  type        = string
  default     = "everloop"
}

variable "password" {
  description = "Password of that user."
  type        = string
  sensitive   = true
  ephemeral   = true
}

variable "password_version" {
  description = "A higher number has the password set again."
  type        = number
}

variable "engine_version" {
  description = "Major version of PostgreSQL; minor ones come by themselves in the maintenance window."
  type        = string
  default     = "17"

  validation {
    condition     = can(regex("^1[4-9]$", var.engine_version))
    error_message = "A major version of PostgreSQL, 14 or newer."
  }
}

variable "instance_class" {
  description = "Size of the instance."
  type        = string
  default     = "db.m7g.large"

  validation {
    condition     = startswith(var.instance_class, "db.")
    error_message = "An RDS class, as in db.m7g.large."
  }
}

variable "storage_gib" {
  description = "Disk to begin with, in GiB."
  type        = number
  default     = 50

  validation {
    condition     = var.storage_gib >= 20
    error_message = "gp3 begins at 20 GiB."
  }
}

variable "max_storage_gib" {
  description = "Disk up to which RDS may go by itself, in GiB."
  type        = number
  default     = 200

  validation {
    condition     = var.max_storage_gib > var.storage_gib
    error_message = "Must be more than storage_gib."
  }
}

variable "multi_az" {
  description = "Whether a standby in another zone takes over when the instance fails."
  type        = bool
  default     = true
}

variable "backup_days" {
  description = "Days back to any second of which the databases can be restored."
  type        = number
  default     = 14

  validation {
    condition     = var.backup_days >= 1 && var.backup_days <= 35
    error_message = "1 to 35 days: without backups there is no way back."
  }
}

variable "deletion_protection" {
  description = "Whether deleting the instance is refused; with it a last snapshot is taken when it is deleted after all."
  type        = bool
  default     = true
}

variable "kms_key_arn" {
  description = "Key that encrypts the disk, the backups and the logs."
  type        = string
}

variable "log_retention_days" {
  description = "Days that the logs are kept."
  type        = number
  default     = 365
}
