output "endpoint" {
  description = "URL that answers over HTTP inside the VPC, with the paths of the platform."
  value       = "http://${aws_instance.this.private_dns}:8080"
}

output "grpc_endpoint" {
  description = "Address that answers over gRPC, `host:port`."
  value       = "${aws_instance.this.private_dns}:8081"
}

output "instance_id" {
  description = "For `aws ssm start-session --target`."
  value       = aws_instance.this.id
}
