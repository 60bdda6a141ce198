# What each pod may do in AWS. Services that have no role here (inference, registry gateway, monitor) may do nothing: they
# speak to Kafka, PostgreSQL and, for artifacts, to MLflow, which passes on what is in its bucket.

locals {
  # Object keys by service. `list` is of a whole bucket: S3 tells "not there" from "not allowed" only to those who may list.
  buckets = {
    ingest = [
      { bucket = "data", keys = "*", actions = local.write },    # shards, states, dead letters
      { bucket = "dvc", keys = "dvc/*", actions = local.write }, # dataset versions
    ]
    trainer = [
      { bucket = "dvc", keys = "dvc/files/md5/*", actions = local.read },
    ]
    mlflow = [
      { bucket = "mlflow", keys = "*", actions = local.write },
    ]
  }
  read  = ["s3:GetObject"]
  write = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]

  # name of the role => namespace, service account and what it may do
  roles = merge(
    {
      for service, _ in local.buckets : service => {
        namespace       = var.namespace
        service_account = "${var.release}-${service}"
        policy          = data.aws_iam_policy_document.buckets[service].json
      }
    },
    {
      external-secrets   = { namespace = "external-secrets", service_account = "external-secrets", policy = data.aws_iam_policy_document.external_secrets.json }
      cluster-autoscaler = { namespace = "kube-system", service_account = "cluster-autoscaler", policy = data.aws_iam_policy_document.autoscaler.json }
      fluent-bit         = { namespace = "logging", service_account = "fluent-bit", policy = data.aws_iam_policy_document.logs.json }
    },
  )
}

module "role" {
  source   = "../irsa"
  for_each = local.roles

  name              = "${var.name}-${each.key}"
  oidc_provider_arn = module.eks.oidc_provider_arn
  oidc_issuer_url   = module.eks.oidc_issuer_url
  namespace         = each.value.namespace
  service_account   = each.value.service_account
  policies          = { (each.key) = each.value.policy }
}

data "aws_iam_policy_document" "buckets" {
  for_each = local.buckets

  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [for grant in each.value : module.bucket[grant.bucket].arn]
  }

  dynamic "statement" {
    for_each = each.value

    content {
      sid       = title(statement.value.bucket)
      actions   = statement.value.actions
      resources = ["${module.bucket[statement.value.bucket].arn}/${statement.value.keys}"]
    }
  }

  # The objects are encrypted; the key opens for S3 alone.
  statement {
    sid       = "Key"
    actions   = contains(flatten(each.value[*].actions), "s3:PutObject") ? ["kms:Decrypt", "kms:GenerateDataKey"] : ["kms:Decrypt"]
    resources = [aws_kms_key.this.arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${data.aws_region.current.name}.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "external_secrets" {
  statement {
    sid       = "Read"
    actions   = ["secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue"]
    resources = [aws_secretsmanager_secret.this.arn]
  }

  statement {
    sid       = "Key"
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.this.arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["secretsmanager.${data.aws_region.current.name}.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "autoscaler" {
  # AWS offers no narrower resource for these reads.
  statement {
    sid = "Look"
    actions = [
      "autoscaling:DescribeAutoScalingGroups",
      "autoscaling:DescribeAutoScalingInstances",
      "autoscaling:DescribeLaunchConfigurations",
      "autoscaling:DescribeScalingActivities",
      "ec2:DescribeImages",
      "ec2:DescribeInstanceTypes",
      "ec2:DescribeLaunchTemplateVersions",
      "ec2:GetInstanceTypesFromInstanceRequirements",
    ]
    resources = ["*"]
  }

  statement {
    sid       = "LookAtGroups"
    actions   = ["eks:DescribeNodegroup"]
    resources = ["arn:${data.aws_partition.current.partition}:eks:${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}:nodegroup/${module.eks.cluster_name}/*"]
  }

  statement {
    sid       = "Scale"
    actions   = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
    resources = ["arn:${data.aws_partition.current.partition}:autoscaling:${data.aws_region.current.name}:${data.aws_caller_identity.current.account_id}:autoScalingGroup:*"]

    # EKS tags the groups of its node groups so.
    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/k8s.io/cluster-autoscaler/${module.eks.cluster_name}"
      values   = ["owned"]
    }
  }
}

data "aws_iam_policy_document" "logs" {
  statement {
    sid       = "Write"
    actions   = ["logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"]
    resources = ["${module.cloudwatch.log_group_arn}:*"]
  }
}
