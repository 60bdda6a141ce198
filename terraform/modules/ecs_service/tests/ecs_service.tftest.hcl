mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/made" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-central-1:123456789012:log-group:/everloop/flights" }
  }
  mock_resource "aws_lb" {
    defaults = { arn = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/net/flights/1", dns_name = "flights.internal" }
  }
  mock_resource "aws_lb_target_group" {
    defaults = { arn = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/flights/1" }
  }
  mock_resource "aws_ecs_task_definition" {
    defaults = { arn = "arn:aws:ecs:eu-central-1:123456789012:task-definition/flights:1" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
  mock_data "aws_region" {
    defaults = { name = "eu-central-1" }
  }
}

variables {
  name           = "flights"
  image          = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/models/flights:3"
  repository_arn = "arn:aws:ecr:eu-central-1:123456789012:repository/models/flights"
  vpc_id         = "vpc-1"
  subnet_ids     = ["subnet-1", "subnet-2"]
  caller_cidrs   = ["10.0.0.0/8"]
  kms_key_arn    = "arn:aws:kms:eu-central-1:123456789012:key/1"
}

run "a_task_is_as_narrow_as_a_pod" {
  assert {
    condition = alltrue([for container in jsondecode(aws_ecs_task_definition.this.container_definitions) :
    container.readonlyRootFilesystem && container.user == "10001:10001" && container.image == var.image])
    error_message = "no root, no writing beside the volumes"
  }

  assert {
    condition     = aws_ecs_task_definition.this.task_role_arn == null && aws_ecs_service.this.network_configuration[0].assign_public_ip == false
    error_message = "no role at AWS, no public address"
  }
}

run "who_starts_it_may_pull_one_image" {
  assert {
    condition     = { for statement in data.aws_iam_policy_document.start.statement : statement.sid => statement.resources }["PullTheImage"] == toset([var.repository_arn])
    error_message = "from its own repository"
  }
}

run "callers_come_by_the_load_balancer_alone" {
  assert {
    condition     = { for key, rule in aws_vpc_security_group_ingress_rule.callers : key => [rule.from_port, rule.to_port] } == { "http 10.0.0.0/8" = [8080, 8080], "grpc 10.0.0.0/8" = [8081, 8081] }
    error_message = "the named range, on two ports"
  }

  assert {
    condition     = alltrue([for rule in aws_vpc_security_group_ingress_rule.task : rule.referenced_security_group_id == aws_security_group.balancer.id])
    error_message = "tasks take connections of the load balancer"
  }

  assert {
    condition     = aws_lb.this.internal && keys(aws_vpc_security_group_egress_rule.task) == ["tls"]
    error_message = "inside of the VPC, and out over TLS only"
  }
}

run "kafka_is_reached_where_predictions_are_logged" {
  variables {
    environment = { EVERLOOP_KAFKA_BOOTSTRAP = "b-1:9092" }
  }

  assert {
    condition     = aws_vpc_security_group_egress_rule.task["kafka"].from_port == 9092
    error_message = "the broker's port is open"
  }

  assert {
    condition     = contains(jsondecode(aws_ecs_task_definition.this.container_definitions)[0].environment, { name = "EVERLOOP_KAFKA_BOOTSTRAP", value = "b-1:9092" })
    error_message = "and the server told of it"
  }
}

run "a_version_that_is_not_healthy_goes_back" {
  assert {
    condition     = aws_ecs_service.this.deployment_circuit_breaker[0].rollback && aws_appautoscaling_target.this.min_capacity == 2
    error_message = "by itself, with two tasks at least"
  }
}

run "not_for_everybody" {
  command = plan

  variables {
    caller_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.caller_cidrs]
}

run "not_in_one_zone" {
  command = plan

  variables {
    subnet_ids = ["subnet-1"]
  }

  expect_failures = [var.subnet_ids]
}
