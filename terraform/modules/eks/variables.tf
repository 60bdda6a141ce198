variable "name" {
  description = "Name of the cluster."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,24}$", var.name))
    error_message = "Lower-case letters, digits and hyphens, 2 to 25 characters, a letter first."
  }
}

variable "kubernetes_version" {
  description = "Version of Kubernetes, <major>.<minor>."
  type        = string
  default     = "1.33"

  validation {
    condition     = can(regex("^1\\.[0-9]{2}$", var.kubernetes_version))
    error_message = "As in 1.33, without a patch number."
  }
}

variable "subnet_ids" {
  description = "Private subnets of the nodes, in at least two zones."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "EKS wants subnets in at least two zones."
  }
}

variable "service_cidr" {
  description = "Addresses of Kubernetes' Services; must not overlap the VPC's. It cannot be changed later."
  type        = string
  default     = "172.20.0.0/16"

  validation {
    condition     = can(regex("/(1[2-9]|2[0-4])$", var.service_cidr)) && can(cidrhost(var.service_cidr, 0))
    error_message = "An IPv4 range between /12 and /24, as EKS wants it."
  }
}

variable "public_access_cidrs" {
  description = "Ranges that may reach the Kubernetes API from outside; empty for the VPC alone."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.public_access_cidrs : can(cidrhost(cidr, 0)) && !endswith(cidr, "/0")])
    error_message = "IPv4 ranges, and not the whole internet: name the networks that administer the cluster."
  }
}

variable "admin_principal_arns" {
  description = "IAM roles or users that administer the cluster. Nobody else does, not even who made it."
  type        = set(string)

  validation {
    condition     = length(var.admin_principal_arns) > 0 && alltrue([for arn in var.admin_principal_arns : can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/", arn))])
    error_message = "At least one ARN of an IAM role or user."
  }
}

variable "node_groups" {
  description = "Groups of nodes by name. Each starts with min_size; the cluster autoscaler moves it up to max_size."
  type = map(object({
    instance_types = list(string)
    min_size       = number
    max_size       = number
    disk_gib       = optional(number, 50)
    capacity_type  = optional(string, "ON_DEMAND")
    ami_type       = optional(string, "AL2023_x86_64_STANDARD")
    labels         = optional(map(string), {})
    taints = optional(list(object({
      key    = string
      value  = string
      effect = string
    })), [])
  }))

  validation {
    condition     = length(var.node_groups) > 0 && alltrue([for group in values(var.node_groups) : length(group.instance_types) > 0])
    error_message = "At least one group, each with an instance type."
  }

  validation {
    condition     = alltrue([for group in values(var.node_groups) : group.min_size >= 0 && group.max_size >= max(1, group.min_size)])
    error_message = "min_size must be 0 or more, max_size 1 or more and no less than min_size."
  }

  validation {
    condition     = anytrue([for group in values(var.node_groups) : group.min_size > 0 && length(group.taints) == 0])
    error_message = "One group without taints must keep a node: the add-ons have to run somewhere."
  }

  validation {
    condition     = alltrue([for group in values(var.node_groups) : contains(["ON_DEMAND", "SPOT"], group.capacity_type)])
    error_message = "capacity_type is ON_DEMAND or SPOT."
  }
}

variable "kms_key_arn" {
  description = "Key that encrypts Kubernetes' secrets and the log of the control plane."
  type        = string
}

variable "log_retention_days" {
  description = "Days that the log of the control plane is kept."
  type        = number
  default     = 365
}
