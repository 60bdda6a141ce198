variable "name" {
  description = "First part of the repositories' names."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,24}$", var.name))
    error_message = "Lower-case letters, digits and hyphens, 2 to 25 characters, a letter first."
  }
}

variable "repositories" {
  description = "Images, by name."
  type        = set(string)

  validation {
    condition     = length(var.repositories) > 0 && alltrue([for name in var.repositories : can(regex("^[a-z0-9]+([._-][a-z0-9]+)*$", name))])
    error_message = "At least one name, of lower-case letters and digits with single . _ or - between them."
  }
}

variable "kms_key_arn" {
  description = "Key that encrypts the images."
  type        = string
}

variable "keep_images" {
  description = "Newest images of a repository that are kept: how far back a rollback can go."
  type        = number
  default     = 50

  validation {
    condition     = var.keep_images >= 2
    error_message = "At least 2: the one that runs and the one before."
  }
}

variable "force_delete" {
  description = "Whether `terraform destroy` deletes a repository with images in it."
  type        = bool
  default     = false
}
