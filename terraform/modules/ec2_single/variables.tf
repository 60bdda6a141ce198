variable "name" {
  description = "Prefix of every name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,30}[a-z0-9]$", var.name))
    error_message = "Lower-case letters, digits and hyphens, 2 to 32 characters, a letter first."
  }
}

variable "image" {
  description = "Image that `everloop package` has built, in ECR, by a tag that never moves or by its digest."
  type        = string

  validation {
    condition     = can(regex("(:[^:/@]+|@sha256:[0-9a-f]{64})$", var.image)) && !endswith(var.image, ":latest")
    error_message = "<registry>/<name>:<version> or <registry>/<name>@sha256:<digest>, and not `latest`."
  }
}

variable "repository_arn" {
  description = "ECR repository of the image: what it may be pulled from."
  type        = string
}

variable "vpc_id" {
  description = "VPC that it runs in."
  type        = string
}

variable "subnet_id" {
  description = "Private subnet; it must reach ECR, Systems Manager and CloudWatch, by NAT or endpoints."
  type        = string
}

variable "caller_cidrs" {
  description = "Ranges that may ask for predictions."
  type        = set(string)

  validation {
    condition     = length(var.caller_cidrs) > 0 && !contains(var.caller_cidrs, "0.0.0.0/0")
    error_message = "Who asks is named; it speaks neither TLS nor passwords."
  }
}

variable "instance_type" {
  description = "Machine; x86-64, as the images are."
  type        = string
  default     = "t3.medium"
}

variable "kms_key_arn" {
  description = "Key that encrypts logs and disks."
  type        = string
}

variable "log_retention_days" {
  description = "Days that logs are kept."
  type        = number
  default     = 365
}

