variable "name" {
  description = "Name of the Kafka cluster."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,24}$", var.name))
    error_message = "Lower-case letters, digits and hyphens, 2 to 25 characters, a letter first."
  }
}

variable "vpc_id" {
  description = "VPC of the brokers."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets of the brokers, each in a zone of its own: three copies of a record need three."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) == 3
    error_message = "Exactly three subnets, in three zones."
  }
}

variable "client_security_group_ids" {
  description = "Security groups whose members may connect, by a name for each."
  type        = map(string)
}

variable "kafka_version" {
  description = "Version of Kafka, as MSK names it."
  type        = string
  default     = "3.9.x"

  validation {
    condition     = can(regex("^([3-9])\\.[0-9]+\\.(x|[0-9]+)(\\.kraft)?$", var.kafka_version))
    error_message = "Kafka 3 or newer, as in 3.9.x."
  }
}

variable "instance_type" {
  description = "Size of a broker."
  type        = string
  default     = "kafka.m7g.large"

  validation {
    condition     = startswith(var.instance_type, "kafka.")
    error_message = "An MSK broker type, as in kafka.m7g.large."
  }
}

variable "brokers_per_zone" {
  description = "Brokers in each zone."
  type        = number
  default     = 1

  validation {
    condition     = var.brokers_per_zone >= 1 && var.brokers_per_zone <= 10
    error_message = "1 to 10."
  }
}

variable "volume_gib" {
  description = "Disk of a broker, in GiB: a week of records, predictions and events, three times over all brokers. It can grow, never shrink."
  type        = number
  default     = 100

  validation {
    condition     = var.volume_gib >= 1 && var.volume_gib <= 16384
    error_message = "1 to 16384 GiB."
  }
}

variable "client_broker" {
  description = "How clients connect: TLS_PLAINTEXT (both ports), TLS or PLAINTEXT. The services speak plaintext only, inside the VPC."
  type        = string
  default     = "TLS_PLAINTEXT"

  validation {
    condition     = contains(["TLS_PLAINTEXT", "TLS", "PLAINTEXT"], var.client_broker)
    error_message = "TLS_PLAINTEXT, TLS or PLAINTEXT."
  }
}

variable "open_monitoring" {
  description = "Whether brokers export metrics for Prometheus."
  type        = bool
  default     = true
}

variable "kms_key_arn" {
  description = "Key that encrypts the disks and the log."
  type        = string
}

variable "log_retention_days" {
  description = "Days that the brokers' log is kept."
  type        = number
  default     = 365
}
