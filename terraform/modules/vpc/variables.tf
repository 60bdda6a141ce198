variable "name" {
  description = "Name of the VPC, and prefix of what is in it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,24}$", var.name))
    error_message = "Lower-case letters, digits and hyphens, 2 to 25 characters, a letter first."
  }
}

variable "cidr" {
  description = "Addresses of the VPC. At least a /20: each zone gets a sixteenth for its pods."
  type        = string
  default     = "10.20.0.0/16"

  validation {
    condition     = can(cidrhost(var.cidr, 0)) && try(tonumber(split("/", var.cidr)[1]), 32) <= 20
    error_message = "Must be an IPv4 range of at least a /20, as in 10.20.0.0/16."
  }
}

variable "availability_zones" {
  description = "Availability zones, by name. Kafka keeps three copies of a record, each in a zone of its own."
  type        = list(string)

  validation {
    condition     = length(var.availability_zones) >= 3 && length(var.availability_zones) <= 6 && length(distinct(var.availability_zones)) == length(var.availability_zones)
    error_message = "Three to six different zones."
  }
}

variable "single_nat_gateway" {
  description = "One NAT gateway for all zones in the place of one in each: cheaper, and gone with its zone."
  type        = bool
  default     = false
}

variable "kms_key_arn" {
  description = "Key that encrypts the flow log."
  type        = string
}

variable "log_retention_days" {
  description = "Days that the flow log is kept."
  type        = number
  default     = 365
}
