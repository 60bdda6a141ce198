variable "name" {
  description = "Name of the bucket; the world shares one space of names."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.name))
    error_message = "Lower-case letters, digits and hyphens, 3 to 63 characters."
  }
}

variable "kms_key_arn" {
  description = "Key that encrypts the objects."
  type        = string
}

variable "noncurrent_days" {
  description = "Days that a deleted or replaced object can be brought back. `everloop erase` is complete only after them."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1 && floor(var.noncurrent_days) == var.noncurrent_days
    error_message = "A whole number of days, at least 1."
  }
}

variable "infrequent_access_days" {
  description = "Age in days at which objects move to the storage class for infrequent access; null keeps them."
  type        = number
  default     = null

  validation {
    condition     = var.infrequent_access_days == null ? true : var.infrequent_access_days >= 30
    error_message = "S3 takes no less than 30 days."
  }
}

variable "force_destroy" {
  description = "Whether `terraform destroy` deletes a bucket with objects in it."
  type        = bool
  default     = false
}
