mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/made" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
}

variables {
  name              = "everloop-ingest"
  oidc_provider_arn = "arn:aws:iam::123456789012:oidc-provider/oidc.example.com/id/1"
  oidc_issuer_url   = "https://oidc.example.com/id/1"
  namespace         = "everloop"
  service_account   = "everloop-ingest"
}

run "one_service_account_is_trusted" {
  command = plan

  assert {
    condition     = data.aws_iam_policy_document.trust.statement[0].actions == toset(["sts:AssumeRoleWithWebIdentity"])
    error_message = "by web identity only"
  }

  assert {
    condition = {
      for condition in data.aws_iam_policy_document.trust.statement[0].condition : condition.variable => "${condition.test} ${join(",", condition.values)}"
      } == {
      "oidc.example.com/id/1:sub" = "StringEquals system:serviceaccount:everloop:everloop-ingest"
      "oidc.example.com/id/1:aud" = "StringEquals sts.amazonaws.com"
    }
    error_message = "one subject and one audience, compared exactly"
  }
}

run "no_wildcard_as_a_service_account" {
  command = plan

  variables {
    service_account = "everloop-*"
  }

  expect_failures = [var.service_account]
}

run "no_wildcard_as_a_namespace" {
  command = plan

  variables {
    namespace = "*"
  }

  expect_failures = [var.namespace]
}
