# One model as a service on Fargate, behind an internal load balancer for HTTP and gRPC.

data "aws_region" "current" {}

locals {
  ports = { http = 8080, grpc = 8081 }
}

resource "aws_cloudwatch_log_group" "this" {
  name              = "/everloop/${var.name}/tasks"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
}

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ecs-tasks.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "start" {
  statement {
    sid       = "AskForAToken"
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"]
  }

  statement {
    sid       = "PullTheImage"
    actions   = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    resources = [var.repository_arn]
  }

  statement {
    sid       = "WriteTheLog"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.this.arn}:*"]
  }
}

# For who starts the task. The task itself has no role: the model calls nobody at AWS.
resource "aws_iam_role" "start" {
  name               = "${var.name}-start"
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

resource "aws_iam_role_policy" "start" {
  name   = "start"
  role   = aws_iam_role.start.id
  policy = data.aws_iam_policy_document.start.json
}

resource "aws_ecs_cluster" "this" {
  name = var.name

  setting {
    name  = "containerInsights"
    value = "enabled"
  }
}

# As `everloop package` describes it in task-definition.json.
resource "aws_ecs_task_definition" "this" {
  family                   = var.name
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.cpu
  memory                   = var.memory_mib
  execution_role_arn       = aws_iam_role.start.arn

  volume { name = "tmp" }
  volume { name = "data" }

  container_definitions = jsonencode([{
    name                   = "model"
    image                  = var.image
    essential              = true
    user                   = "10001:10001"
    readonlyRootFilesystem = true
    stopTimeout            = 60
    environment            = [for key in sort(keys(var.environment)) : { name = key, value = var.environment[key] }]
    mountPoints = [
      { sourceVolume = "tmp", containerPath = "/tmp" },
      { sourceVolume = "data", containerPath = "/var/lib/everloop" },
    ]
    portMappings = [for name, port in local.ports : { containerPort = port, hostPort = port, protocol = "tcp" }]
    healthCheck = {
      command     = ["CMD", "python", "-m", "everloop_runtime.health", "127.0.0.1:8081"]
      interval    = 10
      timeout     = 5
      retries     = 3
      startPeriod = 60
    }
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = aws_cloudwatch_log_group.this.name
        awslogs-region        = data.aws_region.current.name
        awslogs-stream-prefix = "model"
      }
    }
  }])
}

resource "aws_security_group" "balancer" {
  name        = "${var.name}-balancer"
  description = "Callers of ${var.name}"
  vpc_id      = var.vpc_id
}

resource "aws_security_group" "task" {
  name        = "${var.name}-task"
  description = "Tasks of ${var.name}"
  vpc_id      = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "callers" {
  for_each = { for pair in setproduct(keys(local.ports), var.caller_cidrs) : join(" ", pair) => pair }

  security_group_id = aws_security_group.balancer.id
  description       = "Predictions over ${each.value[0]}"
  cidr_ipv4         = each.value[1]
  ip_protocol       = "tcp"
  from_port         = local.ports[each.value[0]]
  to_port           = local.ports[each.value[0]]
}

resource "aws_vpc_security_group_egress_rule" "balancer" {
  for_each = local.ports

  security_group_id            = aws_security_group.balancer.id
  description                  = "Tasks, ${each.key}"
  referenced_security_group_id = aws_security_group.task.id
  ip_protocol                  = "tcp"
  from_port                    = each.value
  to_port                      = each.value
}

resource "aws_vpc_security_group_ingress_rule" "task" {
  for_each = local.ports

  security_group_id            = aws_security_group.task.id
  description                  = "Load balancer, ${each.key}"
  referenced_security_group_id = aws_security_group.balancer.id
  ip_protocol                  = "tcp"
  from_port                    = each.value
  to_port                      = each.value
}

# Without it no task starts: the image and the log are beyond.
resource "aws_vpc_security_group_egress_rule" "task" {
  for_each = merge({ tls = 443 }, contains(keys(var.environment), "EVERLOOP_KAFKA_BOOTSTRAP") ? { kafka = 9092 } : {})

  security_group_id = aws_security_group.task.id
  description       = "ECR, CloudWatch and the prediction log: ${each.key}"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = each.value
  to_port           = each.value
}

resource "aws_lb" "this" {
  #checkov:skip=CKV_AWS_91: an internal load balancer of TCP; the model server counts and logs what it answers
  #checkov:skip=CKV_AWS_150: it holds nothing: made again, it is the same
  name                             = var.name
  load_balancer_type               = "network"
  internal                         = true
  subnets                          = var.subnet_ids
  security_groups                  = [aws_security_group.balancer.id]
  enable_cross_zone_load_balancing = true
}

# By the model's own readiness, for both ports.
resource "aws_lb_target_group" "this" {
  for_each = local.ports

  name                 = "${substr(var.name, 0, 27)}-${each.key}"
  vpc_id               = var.vpc_id
  target_type          = "ip"
  protocol             = "TCP"
  port                 = each.value
  deregistration_delay = 30

  health_check {
    protocol = "HTTP"
    port     = local.ports.http
    path     = "/v2/health/ready"
    interval = 10
  }
}

resource "aws_lb_listener" "this" {
  for_each = local.ports

  load_balancer_arn = aws_lb.this.arn
  protocol          = "TCP"
  port              = each.value

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.this[each.key].arn
  }
}

resource "aws_ecs_service" "this" {
  name            = var.name
  cluster         = aws_ecs_cluster.this.id
  task_definition = aws_ecs_task_definition.this.arn
  launch_type     = "FARGATE"
  desired_count   = var.min_tasks

  availability_zone_rebalancing = "ENABLED"

  # A version that does not become healthy goes back by itself.
  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = var.subnet_ids
    security_groups  = [aws_security_group.task.id]
    assign_public_ip = false
  }

  dynamic "load_balancer" {
    for_each = local.ports

    content {
      target_group_arn = aws_lb_target_group.this[load_balancer.key].arn
      container_name   = "model"
      container_port   = load_balancer.value
    }
  }

  lifecycle {
    ignore_changes = [desired_count] # the scaling's
  }

  depends_on = [aws_lb_listener.this, aws_iam_role_policy.start]
}

resource "aws_appautoscaling_target" "this" {
  service_namespace  = "ecs"
  scalable_dimension = "ecs:service:DesiredCount"
  resource_id        = "service/${aws_ecs_cluster.this.name}/${aws_ecs_service.this.name}"
  min_capacity       = var.min_tasks
  max_capacity       = var.max_tasks
}

resource "aws_appautoscaling_policy" "processor" {
  name               = "${var.name}-processor"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = aws_appautoscaling_target.this.service_namespace
  scalable_dimension = aws_appautoscaling_target.this.scalable_dimension
  resource_id        = aws_appautoscaling_target.this.resource_id

  target_tracking_scaling_policy_configuration {
    target_value = 60 # percent

    predefined_metric_specification {
      predefined_metric_type = "ECSServiceAverageCPUUtilization"
    }
  }
}
