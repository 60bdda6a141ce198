# One model as a Lambda function behind a URL: nothing to pay for while nobody asks.

# Where Lambda writes by itself; made here, it is encrypted and does not grow for ever.
resource "aws_cloudwatch_log_group" "this" {
  name              = "/aws/lambda/${var.name}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
}

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["lambda.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "logs" {
  statement {
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.this.arn}:*"]
  }
}

resource "aws_iam_role" "this" {
  name               = "${var.name}-function"
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

# Lambda itself pulls the image: the function needs no more than its log.
resource "aws_iam_role_policy" "logs" {
  name   = "logs"
  role   = aws_iam_role.this.id
  policy = data.aws_iam_policy_document.logs.json
}

resource "aws_lambda_function" "this" {
  #checkov:skip=CKV_AWS_50: traces come with the caller's traceparent, as on the platform, not from X-Ray
  #checkov:skip=CKV_AWS_116: nothing is invoked asynchronously: who asks is told
  #checkov:skip=CKV_AWS_117: the model is in the image and calls nobody, so that it needs no network
  #checkov:skip=CKV_AWS_272: Lambda checks signatures of archives, not of images
  function_name                  = var.name
  role                           = aws_iam_role.this.arn
  package_type                   = "Image"
  image_uri                      = var.image
  memory_size                    = var.memory_mib
  timeout                        = var.timeout_seconds
  reserved_concurrent_executions = var.most_at_once

  ephemeral_storage {
    size = 1024 # MiB of /tmp, where the model is verified
  }

  depends_on = [aws_cloudwatch_log_group.this, aws_iam_role_policy.logs]
}

resource "aws_lambda_function_url" "this" {
  function_name      = aws_lambda_function.this.function_name
  authorization_type = var.public ? "NONE" : "AWS_IAM"
}

resource "aws_lambda_permission" "callers" {
  for_each = var.public ? toset(["*"]) : var.caller_arns

  function_name          = aws_lambda_function.this.function_name
  action                 = "lambda:InvokeFunctionUrl"
  principal              = each.value
  function_url_auth_type = aws_lambda_function_url.this.authorization_type
}
