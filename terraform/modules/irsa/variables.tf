variable "name" {
  description = "Name of the role."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9+=,.@_-]{1,64}$", var.name))
    error_message = "A name that IAM takes for a role: at most 64 letters, digits and +=,.@_-."
  }
}

variable "oidc_provider_arn" {
  description = "IAM's OIDC provider of the cluster."
  type        = string
}

variable "oidc_issuer_url" {
  description = "Issuer of the cluster's service account tokens, with or without https://."
  type        = string
}

variable "namespace" {
  description = "Namespace of the service account."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", var.namespace))
    error_message = "One namespace by name: a wildcard would let any namespace take the role."
  }
}

variable "service_account" {
  description = "Name of the service account."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", var.service_account))
    error_message = "One service account by name: a wildcard would let any of them take the role."
  }
}

variable "policies" {
  description = "What the role may do: policy documents (JSON) by name."
  type        = map(string)
  default     = {}
}

variable "managed_policy_arns" {
  description = "Policies kept by AWS that the role gets besides."
  type        = set(string)
  default     = []
}
