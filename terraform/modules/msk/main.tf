# Kafka. What it acknowledges is on two brokers in two zones at least.

resource "aws_security_group" "this" {
  name        = "${var.name}-msk"
  description = "Kafka brokers of ${var.name}"
  vpc_id      = var.vpc_id
}

locals {
  ports = concat(
    var.client_broker == "PLAINTEXT" ? [] : [9094],
    var.client_broker == "TLS" ? [] : [9092],
  )
}

resource "aws_vpc_security_group_ingress_rule" "this" {
  for_each = { for pair in setproduct(keys(var.client_security_group_ids), local.ports) : "${pair[0]}-${pair[1]}" => pair }

  security_group_id            = aws_security_group.this.id
  referenced_security_group_id = var.client_security_group_ids[each.value[0]]
  from_port                    = each.value[1]
  to_port                      = each.value[1]
  ip_protocol                  = "tcp"
  description                  = "Kafka from ${each.value[0]}"
}

resource "aws_msk_configuration" "this" {
  name           = var.name
  kafka_versions = [var.kafka_version]

  # The services make their topics and leave the number of copies to the broker.
  server_properties = <<-EOT
    auto.create.topics.enable=false
    default.replication.factor=3
    min.insync.replicas=2
    unclean.leader.election.enable=false
    num.partitions=6
    log.retention.hours=168
  EOT

  # A change makes a new revision beside the old one, which brokers use until they have restarted.
  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_cloudwatch_log_group" "this" {
  name              = "/everloop/${var.name}/msk"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
}

resource "aws_msk_cluster" "this" {
  #checkov:skip=CKV_AWS_81: the services speak plaintext; TLS between brokers and on disk is on, and only nodes may connect
  cluster_name           = var.name
  kafka_version          = var.kafka_version
  number_of_broker_nodes = var.brokers_per_zone * length(var.subnet_ids)
  enhanced_monitoring    = "PER_BROKER"

  broker_node_group_info {
    instance_type   = var.instance_type
    client_subnets  = var.subnet_ids
    security_groups = [aws_security_group.this.id]

    storage_info {
      ebs_storage_info {
        volume_size = var.volume_gib
      }
    }
  }

  configuration_info {
    arn      = aws_msk_configuration.this.arn
    revision = aws_msk_configuration.this.latest_revision
  }

  client_authentication {
    unauthenticated = true # the security group says who may connect
  }

  encryption_info {
    encryption_at_rest_kms_key_arn = var.kms_key_arn

    encryption_in_transit {
      client_broker = var.client_broker
      in_cluster    = true
    }
  }

  open_monitoring {
    prometheus {
      jmx_exporter {
        enabled_in_broker = var.open_monitoring
      }

      node_exporter {
        enabled_in_broker = var.open_monitoring
      }
    }
  }

  logging_info {
    broker_logs {
      cloudwatch_logs {
        enabled   = true
        log_group = aws_cloudwatch_log_group.this.name
      }
    }
  }
}
