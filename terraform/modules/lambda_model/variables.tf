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

variable "memory_mib" {
  description = "Memory in MiB; processors come with it, one from 1769 on."
  type        = number
  default     = 2048

  validation {
    condition     = var.memory_mib >= 512 && var.memory_mib <= 10240
    error_message = "512 to 10240."
  }
}

variable "timeout_seconds" {
  description = "Time for one event, in seconds; the first one of a process waits for the model as well."
  type        = number
  default     = 30

  validation {
    condition     = var.timeout_seconds >= 1 && var.timeout_seconds <= 900
    error_message = "1 to 900."
  }
}

variable "most_at_once" {
  description = "Events that are answered at the same time, each in a process of its own; beyond it callers get 429."
  type        = number
  default     = 20
}

variable "public" {
  description = "Whether anybody may ask, without credentials; otherwise callers sign requests with IAM."
  type        = bool
  default     = false
}

variable "caller_arns" {
  description = "Principals of this or other accounts that may ask, beside those whose own policies let them."
  type        = set(string)
  default     = []
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

