mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/made" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-central-1:123456789012:log-group:/aws/lambda/flights" }
  }
  mock_resource "aws_lambda_function" {
    defaults = { arn = "arn:aws:lambda:eu-central-1:123456789012:function:flights" }
  }
  mock_resource "aws_lambda_function_url" {
    defaults = { function_url = "https://made.lambda-url.eu-central-1.on.aws/" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
}

variables {
  name        = "flights"
  image       = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/models/flights:3"
  kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/1"
}

run "the_function_may_write_its_log_and_nothing_else" {
  assert {
    condition     = [for statement in data.aws_iam_policy_document.logs.statement : [statement.actions, statement.resources]] == [[toset(["logs:CreateLogStream", "logs:PutLogEvents"]), toset(["${aws_cloudwatch_log_group.this.arn}:*"])]]
    error_message = "two actions on its own log group"
  }

  assert {
    condition     = aws_cloudwatch_log_group.this.kms_key_id == var.kms_key_arn
    error_message = "the log is encrypted with the given key"
  }

  assert {
    condition     = output.endpoint == "https://made.lambda-url.eu-central-1.on.aws"
    error_message = "a path can be put behind it"
  }
}

run "callers_sign_their_requests" {
  assert {
    condition     = aws_lambda_function_url.this.authorization_type == "AWS_IAM" && length(aws_lambda_permission.callers) == 0
    error_message = "nobody but who this account's IAM lets"
  }

  assert {
    condition     = aws_lambda_function.this.reserved_concurrent_executions == 20
    error_message = "callers cannot spend without a bound"
  }
}

run "callers_can_be_named" {
  variables {
    caller_arns = ["arn:aws:iam::123456789012:role/shop"]
  }

  assert {
    condition     = [for permission in aws_lambda_permission.callers : [permission.principal, permission.action, permission.function_url_auth_type]] == [["arn:aws:iam::123456789012:role/shop", "lambda:InvokeFunctionUrl", "AWS_IAM"]]
    error_message = "the named one, still signing"
  }
}

run "everybody_only_when_asked_for" {
  variables {
    public = true
  }

  assert {
    condition     = aws_lambda_function_url.this.authorization_type == "NONE" && keys(aws_lambda_permission.callers) == ["*"]
    error_message = "public"
  }
}

run "no_image_that_moves" {
  command = plan

  variables {
    image = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/models/flights:latest"
  }

  expect_failures = [var.image]
}

run "no_image_without_a_version" {
  command = plan

  variables {
    image = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/models/flights"
  }

  expect_failures = [var.image]
}
