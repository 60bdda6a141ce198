variable "region" {
  description = "AWS region."
  type        = string
}

variable "name" {
  description = "Name of the model, and prefix of every name."
  type        = string
}

variable "image" {
  description = "Image that `everloop package` has built (`--for lambda` for Lambda), in a repository of this account's ECR."
  type        = string
}

variable "runs_on" {
  description = "`lambda`, `ecs` or `ec2`."
  type        = string

  validation {
    condition     = contains(["lambda", "ecs", "ec2"], var.runs_on)
    error_message = "`lambda`, `ecs` or `ec2`."
  }
}

variable "caller_arns" {
  description = "Lambda: principals that may ask, beside those whose own policies let them."
  type        = set(string)
  default     = []
}

variable "vpc_id" {
  description = "ECS and EC2: the VPC."
  type        = string
  default     = null

  validation {
    condition     = var.runs_on == "lambda" || var.vpc_id != null
    error_message = "ECS and EC2 need a VPC."
  }
}

variable "subnet_ids" {
  description = "ECS and EC2: private subnets; EC2 takes the first."
  type        = list(string)
  default     = []

  validation {
    condition     = var.runs_on == "lambda" || length(var.subnet_ids) > 0
    error_message = "ECS and EC2 need subnets."
  }
}

variable "caller_cidrs" {
  description = "ECS and EC2: ranges that may ask for predictions."
  type        = set(string)
  default     = []
}
