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

output "username" {
  description = "User that owns the databases."
  value       = aws_db_instance.this.username
}
