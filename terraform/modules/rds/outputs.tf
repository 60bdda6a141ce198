output "host" {
  description = "Host name of the instance."
  value       = aws_db_instance.this.address
}

output "port" {
  description = "Port of the instance."
  value       = aws_db_instance.this.port
}

output "identifier" {
  description = "Name of the instance, a dimension of its metrics."
  value       = aws_db_instance.this.identifier
}

output "master_secret_arn" {
  description = "Secret with `username` and `password` of the master user."
  value       = aws_db_instance.this.master_user_secret[0].secret_arn
}
