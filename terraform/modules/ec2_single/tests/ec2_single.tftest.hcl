mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/made" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-central-1:123456789012:log-group:/everloop/flights" }
  }
  mock_resource "aws_instance" {
    defaults = { private_dns = "ip-10-0-0-1.internal" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
  mock_data "aws_ssm_parameter" {
    defaults = { value = "ami-0123456789abcdef0" }
  }
}

variables {
  name           = "flights"
  image          = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/models/flights:3"
  repository_arn = "arn:aws:ecr:eu-central-1:123456789012:repository/models/flights"
  vpc_id         = "vpc-1"
  subnet_id      = "subnet-1"
  caller_cidrs   = ["10.0.0.0/8"]
  kms_key_arn    = "arn:aws:kms:eu-central-1:123456789012:key/1"
}

run "the_model_is_held_as_narrowly_as_in_a_pod" {
  assert {
    condition = alltrue([for option in ["--read-only", "--cap-drop ALL", "--security-opt no-new-privileges", "docker pull --quiet ${var.image}"] :
    strcontains(aws_instance.this.user_data, option)])
    error_message = "read-only, without rights, the named image"
  }

  assert {
    condition     = strcontains(aws_instance.this.user_data, "--password-stdin 123456789012.dkr.ecr.eu-central-1.amazonaws.com")
    error_message = "it logs in at the image's registry"
  }

  assert {
    condition     = aws_instance.this.metadata_options[0].http_tokens == "required" && aws_instance.this.metadata_options[0].http_put_response_hop_limit == 1
    error_message = "a container does not get the machine's credentials"
  }
}

run "the_disk_is_encrypted_and_the_machine_not_on_the_internet" {
  assert {
    condition     = aws_instance.this.root_block_device[0].encrypted && aws_instance.this.root_block_device[0].kms_key_id == var.kms_key_arn
    error_message = "with the given key"
  }

  assert {
    condition     = aws_instance.this.associate_public_ip_address == false
    error_message = "no public address"
  }
}

run "callers_on_two_ports_and_nobody_by_ssh" {
  assert {
    condition     = { for key, rule in aws_vpc_security_group_ingress_rule.callers : key => [rule.from_port, rule.to_port] } == { "http 10.0.0.0/8" = [8080, 8080], "grpc 10.0.0.0/8" = [8081, 8081] }
    error_message = "the named range, on two ports"
  }
}

run "the_machine_may_pull_one_image" {
  assert {
    condition     = { for statement in data.aws_iam_policy_document.machine.statement : statement.sid => statement.resources }["PullTheImage"] == toset([var.repository_arn])
    error_message = "from its own repository"
  }
}

run "no_image_that_moves" {
  command = plan

  variables {
    image = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/models/flights:latest"
  }

  expect_failures = [var.image]
}

run "not_for_everybody" {
  command = plan

  variables {
    caller_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.caller_cidrs]
}
