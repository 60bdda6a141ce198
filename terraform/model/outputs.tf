output "endpoint" {
  description = "URL that answers, with the paths of the platform."
  value       = one(concat(module.lambda[*].endpoint, module.ecs[*].endpoint, module.ec2[*].endpoint))
}

output "grpc_endpoint" {
  description = "Address that answers over gRPC, `host:port`; null on Lambda."
  value       = one(concat(module.ecs[*].grpc_endpoint, module.ec2[*].grpc_endpoint))
}
