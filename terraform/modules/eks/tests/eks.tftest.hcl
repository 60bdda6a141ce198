mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/made" }
  }
  mock_resource "aws_iam_openid_connect_provider" {
    defaults = { arn = "arn:aws:iam::123456789012:oidc-provider/oidc.example.com/id/1" }
  }
  mock_resource "aws_eks_cluster" {
    defaults = { identity = [{ oidc = [{ issuer = "https://oidc.example.com/id/1" }] }] }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
}

variables {
  name                 = "everloop"
  subnet_ids           = ["subnet-1", "subnet-2", "subnet-3"]
  admin_principal_arns = ["arn:aws:iam::123456789012:role/admin"]
  kms_key_arn          = "arn:aws:kms:eu-central-1:123456789012:key/1"
  node_groups          = { services = { instance_types = ["m7i.xlarge"], min_size = 1, max_size = 2 } }
}

run "the_api_is_private_unless_a_range_is_named" {
  command = plan

  assert {
    condition     = !aws_eks_cluster.this.vpc_config[0].endpoint_public_access
    error_message = "private"
  }

  assert {
    condition     = alltrue([for template in aws_launch_template.node : template.metadata_options[0].http_tokens == "required" && template.metadata_options[0].http_put_response_hop_limit == 1])
    error_message = "pods cannot reach the node's credentials"
  }
}

run "not_open_to_the_world" {
  command = plan

  variables {
    public_access_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.public_access_cidrs]
}

run "add_ons_need_a_node_without_taints" {
  command = plan

  variables {
    node_groups = {
      training = { instance_types = ["c7i.xlarge"], min_size = 1, max_size = 2, taints = [{ key = "a", value = "b", effect = "NO_SCHEDULE" }] }
    }
  }

  expect_failures = [var.node_groups]
}

run "services_have_addresses_that_are_known" {
  command = plan

  assert {
    condition     = aws_eks_cluster.this.kubernetes_network_config[0].service_ipv4_cidr == output.service_cidr
    error_message = "network policies name this range"
  }
}
