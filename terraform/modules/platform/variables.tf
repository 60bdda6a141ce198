variable "name" {
  description = "Name of the environment; everything begins with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,24}$", var.name))
    error_message = "Lower-case letters, digits and hyphens, 2 to 25 characters, a letter first."
  }
}

variable "namespace" {
  description = "Kubernetes namespace that the chart is installed in."
  type        = string
  default     = "everloop"
}

variable "release" {
  description = "First part of the chart's service accounts: the release's name if that contains `everloop`."
  type        = string
  default     = "everloop"

  validation {
    condition     = strcontains(var.release, "everloop") && length(var.release) <= 28
    error_message = "Must contain `everloop` and be at most 28 characters long: the chart names service accounts after it."
  }
}

variable "vpc_cidr" {
  description = "Addresses of the VPC."
  type        = string
  default     = "10.20.0.0/16"
}

variable "single_nat_gateway" {
  description = "One NAT gateway for all zones in the place of one in each."
  type        = bool
}

variable "kubernetes_version" {
  description = "Version of Kubernetes, <major>.<minor>."
  type        = string
  default     = "1.33"
}

variable "api_public_access_cidrs" {
  description = "Ranges that may reach the Kubernetes API from outside; empty for the VPC alone."
  type        = set(string)
  default     = []
}

variable "admin_principal_arns" {
  description = "IAM roles or users that administer the cluster."
  type        = set(string)
}

variable "node_groups" {
  description = "Groups of nodes by name; see modules/eks."
  type        = any

  validation {
    condition     = can(keys(var.node_groups))
    error_message = "A map of groups by name."
  }
}

variable "kafka" {
  description = "Size of Kafka; see modules/msk."
  type = object({
    instance_type    = string
    volume_gib       = number
    brokers_per_zone = optional(number, 1)
    open_monitoring  = optional(bool, true)
  })
}

variable "database" {
  description = "Size of PostgreSQL; see modules/rds."
  type = object({
    instance_class  = string
    storage_gib     = number
    max_storage_gib = number
    multi_az        = bool
    backup_days     = number
  })
}

variable "protect_data" {
  description = "Whether `terraform destroy` stops at data: buckets, images, the database, the credentials."
  type        = bool
  default     = true
}

variable "noncurrent_days" {
  description = "Days that a deleted object can be brought back; `everloop erase` is complete only after them."
  type        = number
  default     = 30
}

variable "old_versions_days" {
  description = "Age in days at which dataset versions move to the storage class for infrequent access; null keeps them."
  type        = number
  default     = 90
}

variable "credentials_version" {
  description = "A higher number makes new credentials: password of PostgreSQL and the token of Ray."
  type        = number
  default     = 1
}

variable "alarm_emails" {
  description = "Who is told of alarms."
  type        = set(string)
  default     = []
}

variable "log_retention_days" {
  description = "Days that logs are kept in CloudWatch."
  type        = number
  default     = 365
}
