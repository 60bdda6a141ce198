output "cluster_name" {
  description = "For `aws eks update-kubeconfig --name`."
  value       = module.eks.cluster_name
}

output "registry" {
  description = "Where images are pushed: <registry>/everloop-<service>:<tag>."
  value       = local.registry
}

output "role_arns" {
  description = "IAM roles by name; those of add-ons go to the add-ons' own charts."
  value       = { for name, role in module.role : name => role.role_arn }
}

output "log_group_name" {
  description = "Log group for what the pods print (Fluent Bit)."
  value       = module.cloudwatch.log_group_name
}

output "alarm_topic_arn" {
  description = "SNS topic that alarms go to."
  value       = module.cloudwatch.alarm_topic_arn
}

locals {
  registry = trimsuffix(module.ecr.repository_urls["everloop-ingest"], "/everloop-ingest")
  region   = data.aws_region.current.name
  vpc      = [{ ipBlock = { cidr = var.vpc_cidr } }]
  assume   = { for service in keys(local.buckets) : service => { annotations = { "eks.amazonaws.com/role-arn" = module.role[service].role_arn } } }
}

output "helm_values" {
  description = "Values for deploy/helm/everloop that only this account knows; as JSON they are a file for `helm -f`."
  value = {
    image    = { registry = local.registry }
    kafka    = { bootstrap = module.msk.bootstrap_servers }
    database = { host = module.rds.host, port = module.rds.port, user = module.rds.username }
    objectStore = {
      endpoint = "https://s3.${local.region}.${data.aws_partition.current.dns_suffix}"
      region   = local.region
      buckets  = { for use, bucket in module.bucket : use => bucket.name }
    }
    credentials = { external = { entry = aws_secretsmanager_secret.this.name } }
    mlflow      = local.assume.mlflow
    services    = { for service, values in local.assume : service => values if service != "mlflow" }
    storage     = { className = module.eks.storage_class }
    # Kafka, the database, the endpoints of S3 and STS and the control plane have addresses in the VPC.
    network = {
      kafka       = local.vpc
      database    = local.vpc
      objectStore = local.vpc
      callers     = local.vpc
      kubernetes  = concat(local.vpc, [{ ipBlock = { cidr = module.eks.service_cidr } }])
    }
  }
}
