variable "region" {
  description = "AWS region."
  type        = string
}

variable "admin_principal_arns" {
  description = "IAM roles or users that administer the cluster."
  type        = set(string)
}

variable "api_public_access_cidrs" {
  description = "Ranges that may reach the Kubernetes API from outside; empty for the VPC alone."
  type        = set(string)
  default     = []
}

variable "alarm_emails" {
  description = "Who is told of alarms."
  type        = set(string)
  default     = []
}
