output "log_group_name" {
  description = "Log group for what the pods print."
  value       = aws_cloudwatch_log_group.services.name
}

output "log_group_arn" {
  description = "ARN of that log group."
  value       = aws_cloudwatch_log_group.services.arn
}

output "alarm_topic_arn" {
  description = "SNS topic that alarms go to."
  value       = aws_sns_topic.alarms.arn
}
