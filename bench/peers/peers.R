# Contenders in R: one function each, (arrays, spec) -> a function without arguments that is timed.

formula_of <- function(arrays, spec) {
  fixed <- paste(setdiff(colnames(arrays$frame), c("y", "g", "h")), collapse = " + ")
  effects <- if (isTRUE(spec$slope)) "1 + x1" else "1"
  second <- if (is.null(arrays$h)) "" else " + (1 | h)"
  as.formula(sprintf("y ~ %s + (%s | g)%s", if (nchar(fixed)) fixed else "1", effects, second))
}

families <- list(binomial = binomial(), poisson = poisson(), gamma = Gamma(link = "log"), gaussian = gaussian())

# A new process, as the shell starts one.
cold_glmer <- function(spec) {
  data <- "read.csv('data.csv', stringsAsFactors = TRUE)"
  code <- sprintf("cat(as.numeric(logLik(lme4::glmer(%s, %s, binomial))))", spec$formula, data)
  function() {
    said <- system2("Rscript", c("-e", shQuote(code)), stdout = TRUE, stderr = FALSE)
    list(objective = as.numeric(tail(said, 1)))
  }
}

# Very many fits, one after the other.
batches <- list(
  strata = function(arrays, spec) {
    text <- formula_of(arrays, spec)
    parts <- split(arrays$frame, arrays$s)
    function() list(objective = sum(sapply(parts, function(d) logLik(lme4::glmer(text, d, binomial)))))
  },
  refits = function(arrays, spec) {
    fit <- lme4::lmer(formula_of(arrays, spec), arrays$frame, REML = FALSE)
    function() list(objective = sum(apply(arrays$Y, 2, function(y) logLik(lme4::refit(fit, y)))))
  },
  bootstrap = function(arrays, spec) {
    fit <- lme4::glmer(formula_of(arrays, spec), arrays$frame, binomial)
    of <- function(fit) c(lme4::fixef(fit), sapply(lme4::VarCorr(fit), function(v) attr(v, "stddev")))
    function() {
      found <- lme4::bootMer(fit, of, nsim = spec$replicates)
      list(se = apply(found$t, 2, sd))
    }
  })

glmer <- function(arrays, spec) {
  if (!is.null(spec$batch)) return(if (nchar(spec$batch)) suppressWarnings(batches[[spec$batch]](arrays, spec)))
  if (!is.null(spec$formula)) return(cold_glmer(spec))
  text <- formula_of(arrays, spec)
  nodes <- if (is.null(spec$nodes)) 1L else as.integer(spec$nodes)
  function() {
    fit <- if (spec$family == "gaussian") lme4::lmer(text, arrays$frame, REML = FALSE)
           else lme4::glmer(text, arrays$frame, families[[spec$family]], nAGQ = nodes)
    list(objective = as.numeric(logLik(fit)))
  }
}

glmmTMB <- function(arrays, spec) {
  if (!is.null(spec$nodes) && spec$nodes != 1) return(NULL)
  text <- formula_of(arrays, spec)
  family <- if (spec$family == "negativebinomial") glmmTMB::nbinom2() else families[[spec$family]]
  function() list(objective = as.numeric(logLik(glmmTMB::glmmTMB(text, arrays$frame, family))))
}

# The plain lasso, without a random effect, at all lambdas that were asked for: by default it stops where the deviance
# hardly changes any more.
glmnet <- function(arrays, spec) {
  if (is.null(spec$lambdas)) return(NULL)
  X <- if (!is.null(arrays$wide)) {
    arrays$wide
  } else if (!is.null(arrays$indptr)) {
    size <- c(length(arrays$y), spec$columns)
    Matrix::sparseMatrix(i = arrays$indices + 1, p = arrays$indptr, x = arrays$data, dims = size)
  } else {
    as.matrix(arrays$frame[, -(1:2)])
  }
  glmnet::glmnet.control(fdev = 0)
  ratio <- if (is.null(spec$ratio)) 1e-4 else spec$ratio
  function() {
    fit <- glmnet::glmnet(X, arrays$y, family = spec$family, nlambda = spec$glmnet_lambdas, lambda.min.ratio = ratio)
    list(lambdas = length(fit$lambda), columns = max(fit$df), model = "no random effects")
  }
}
