# What AWS keeps an eye on, because the platform's own Prometheus could be down with it: the database and Kafka.

resource "aws_cloudwatch_log_group" "services" {
  name              = "/everloop/${var.name}/services"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
}

resource "aws_sns_topic" "alarms" {
  name              = "${var.name}-alarms"
  kms_master_key_id = var.kms_key_arn
}

resource "aws_sns_topic_subscription" "email" {
  for_each = var.alarm_emails

  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = each.value
}

locals {
  rds = { DBInstanceIdentifier = var.database_identifier }
  msk = { "Cluster Name" = var.kafka_cluster_name }

  # statistic over five minutes, compared with the threshold, for `periods` of them in a row
  alarms = merge(
    {
      database-cpu         = { namespace = "AWS/RDS", metric = "CPUUtilization", statistic = "Average", above = true, threshold = 80, periods = 3, dimensions = local.rds, text = "The database's processors are busy (percent)" }
      database-disk        = { namespace = "AWS/RDS", metric = "FreeStorageSpace", statistic = "Minimum", above = false, threshold = 5 * pow(1024, 3), periods = 1, dimensions = local.rds, text = "The database's disk is nearly full (bytes left)" }
      database-memory      = { namespace = "AWS/RDS", metric = "FreeableMemory", statistic = "Minimum", above = false, threshold = 256 * pow(1024, 2), periods = 3, dimensions = local.rds, text = "The database is short of memory (bytes left)" }
      kafka-no-controller  = { namespace = "AWS/Kafka", metric = "ActiveControllerCount", statistic = "Maximum", above = false, threshold = 1, periods = 1, dimensions = local.msk, text = "Kafka has no controller" }
      kafka-offline-topics = { namespace = "AWS/Kafka", metric = "OfflinePartitionsCount", statistic = "Maximum", above = true, threshold = 0, periods = 1, dimensions = local.msk, text = "Kafka has partitions that nobody can read or write" }
    },
    merge([
      for broker in range(1, var.kafka_broker_count + 1) : {
        "kafka-${broker}-disk"             = { namespace = "AWS/Kafka", metric = "KafkaDataLogsDiskUsed", statistic = "Maximum", above = true, threshold = 75, periods = 1, dimensions = merge(local.msk, { "Broker ID" = tostring(broker) }), text = "The disk of a Kafka broker fills up (percent)" }
        "kafka-${broker}-under-replicated" = { namespace = "AWS/Kafka", metric = "UnderReplicatedPartitions", statistic = "Minimum", above = true, threshold = 0, periods = 3, dimensions = merge(local.msk, { "Broker ID" = tostring(broker) }), text = "Kafka has partitions with fewer copies than they should have" }
      }
    ]...),
  )
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each = local.alarms

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.text
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = each.value.statistic
  comparison_operator = each.value.above ? "GreaterThanThreshold" : "LessThanThreshold"
  threshold           = each.value.threshold
  period              = 300
  evaluation_periods  = each.value.periods
  treat_missing_data  = "breaching" # what sends no metrics is not well
  alarm_actions       = [aws_sns_topic.alarms.arn]
  ok_actions          = [aws_sns_topic.alarms.arn]
}
