variable "name" {
  description = "Prefix of the alarms and of the log group."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,24}$", var.name))
    error_message = "Lower-case letters, digits and hyphens, 2 to 25 characters, a letter first."
  }
}

variable "alarm_emails" {
  description = "Who is told of alarms; each address has to confirm once."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for email in var.alarm_emails : can(regex("^[^@ ]+@[^@ ]+\\.[^@ ]+$", email))])
    error_message = "Addresses of e-mail."
  }
}

variable "database_identifier" {
  description = "Name of the RDS instance."
  type        = string
}

variable "kafka_cluster_name" {
  description = "Name of the MSK cluster."
  type        = string
}

variable "kafka_broker_count" {
  description = "Brokers of the MSK cluster."
  type        = number

  validation {
    condition     = var.kafka_broker_count >= 1
    error_message = "At least 1."
  }
}

variable "kms_key_arn" {
  description = "Key that encrypts the log and the notifications."
  type        = string
}

variable "log_retention_days" {
  description = "Days that the services' log is kept."
  type        = number
  default     = 365
}
