mock_provider "aws" {
  mock_resource "aws_msk_configuration" {
    defaults = { arn = "arn:aws:kafka:eu-central-1:123456789012:configuration/everloop/1" }
  }
  mock_resource "aws_msk_cluster" {
    defaults = { bootstrap_brokers = "b-1:9092", bootstrap_brokers_tls = "b-1:9094" }
  }
}

variables {
  name                      = "everloop"
  vpc_id                    = "vpc-1"
  subnet_ids                = ["subnet-1", "subnet-2", "subnet-3"]
  client_security_group_ids = { nodes = "sg-1" }
  kms_key_arn               = "arn:aws:kms:eu-central-1:123456789012:key/1"
}

run "what_is_acknowledged_is_on_two_brokers" {
  assert {
    condition     = strcontains(aws_msk_configuration.this.server_properties, "min.insync.replicas=2") && strcontains(aws_msk_configuration.this.server_properties, "default.replication.factor=3")
    error_message = "three copies, two of them in sync"
  }

  assert {
    condition     = aws_msk_cluster.this.number_of_broker_nodes == 3
    error_message = "one broker in each zone"
  }

  assert {
    condition     = output.bootstrap_servers == "b-1:9092"
    error_message = "the addresses that the services can use"
  }
}

run "one_port_for_each_way_in" {
  variables {
    client_broker = "TLS"
  }

  assert {
    condition     = [for rule in aws_vpc_security_group_ingress_rule.this : rule.from_port] == [9094] && output.bootstrap_servers == "b-1:9094"
    error_message = "with TLS the plaintext port is closed"
  }
}

run "two_zones_are_too_few" {
  command = plan

  variables {
    subnet_ids = ["subnet-1", "subnet-2"]
  }

  expect_failures = [var.subnet_ids]
}
