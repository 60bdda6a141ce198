output "endpoint" {
  description = "URL that answers over HTTP inside the VPC, with the paths of the platform."
  value       = "http://${aws_lb.this.dns_name}:8080"
}

output "grpc_endpoint" {
  description = "Address that answers over gRPC, `host:port`."
  value       = "${aws_lb.this.dns_name}:8081"
}
