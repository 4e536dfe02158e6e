# A contender in R: Rscript worker.R FUNCTION FOLDER. The protocol is that of worker.py.
arguments <- commandArgs(trailingOnly = TRUE)
here <- dirname(sub("^--file=", "", grep("^--file=", commandArgs(), value = TRUE)))
say <- function(...) {
  cat(jsonlite::toJSON(list(...), auto_unbox = TRUE, digits = NA), "\n", sep = "")
  flush(stdout())
}

# NumPy's .npy: magic, version, length of a header in Python's syntax, then the values.
read_npy <- function(path) {
  file <- file(path, "rb")
  on.exit(close(file))
  readBin(file, "raw", 8)
  header <- readChar(file, readBin(file, "integer", 1, size = 2, signed = FALSE, endian = "little"))
  shape <- sub(".*'shape': *\\(([^)]*)\\).*", "\\1", header)
  shape <- as.numeric(regmatches(shape, gregexpr("[0-9]+", shape))[[1]])
  type <- sub(".*'descr': *'([^']*)'.*", "\\1", header)
  values <- switch(type,
    "<f8" = readBin(file, "double", prod(shape), size = 8),
    "<i8" = { # low word, then high word: R has no integers of 64 bits
      words <- matrix(readBin(file, "integer", 2 * prod(shape), size = 4), 2)
      words[1, ] + ifelse(words[1, ] < 0, 2^32, 0) + 2^32 * words[2, ]
    },
    stop("cannot read arrays of type ", type))
  if (length(shape) > 1) array(values, rev(shape)) else values
}

source(file.path(here, "peers", "peers.R"))
spec <- jsonlite::fromJSON(file.path(arguments[2], "spec.json"))
files <- list.files(arguments[2], "[.]npy$")
arrays <- lapply(setNames(file.path(arguments[2], files), sub("[.]npy$", "", files)), read_npy)
if (!is.null(arrays$X)) {
  frame <- as.data.frame(arrays$X[, -1, drop = FALSE])
  names(frame) <- sprintf("x%d", seq_along(frame))
  arrays$frame <- cbind(y = arrays$y, g = factor(arrays$g), frame)
  if (!is.null(arrays$h)) arrays$frame$h <- factor(arrays$h)
}
run <- tryCatch(get(arguments[1])(arrays, spec), error = function(e) NULL)
if (is.null(run)) {
  say(status = "not covered")
  quit()
}
version <- as.character(packageVersion(if (arguments[1] == "glmer") "lme4" else arguments[1]))
say(status = "ready", describe = list(version = version))
input <- file("stdin", "r")
while (length(line <- readLines(input, 1)) && line == "run") {
  spent <- system.time(result <- tryCatch(run(), error = function(e) list(error = conditionMessage(e))))
  peak <- tryCatch(as.numeric(sub("\\D*(\\d+).*", "\\1", grep("VmHWM", readLines("/proc/self/status"), value = TRUE))) / 1024,
    error = function(e) NULL)
  say(status = "done", seconds = spent[["elapsed"]], cpu = sum(spent[1:2]), peak_mb = peak, result = result)
}
