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

variable "subnet_ids" {
  description = "Private subnets, of two zones at least; they must reach ECR and CloudWatch, by NAT or endpoints."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "Two zones at least: it outlives the loss of one."
  }
}

variable "caller_cidrs" {
  description = "Ranges that may ask for predictions."
  type        = set(string)

  validation {
    condition     = length(var.caller_cidrs) > 0 && !contains(var.caller_cidrs, "0.0.0.0/0")
    error_message = "Who asks is named; it speaks neither TLS nor passwords."
  }
}

variable "cpu" {
  description = "Processor of a task, in 1024ths of one."
  type        = number
  default     = 1024
}

variable "memory_mib" {
  description = "Memory of a task, in MiB."
  type        = number
  default     = 2048
}

variable "min_tasks" {
  description = "Tasks that always run."
  type        = number
  default     = 2

  validation {
    condition     = var.min_tasks >= 1
    error_message = "At least one."
  }
}

variable "max_tasks" {
  description = "Tasks that run under load."
  type        = number
  default     = 6
}

variable "environment" {
  description = "Further settings of the model server, such as EVERLOOP_KAFKA_BOOTSTRAP for the prediction log."
  type        = map(string)
  default     = {}
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

