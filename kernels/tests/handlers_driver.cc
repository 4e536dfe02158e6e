// Every exported handler without XLA (stand_in.h), on one thread and on four: tiles of all classes and long
// groups, groups nested in parents, matrices over pairs of levels; and operands that do not fit, which must
// be refused.
//
//   kernels/tests/sanitize.sh [address|thread]
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <map>
#include <sstream>

#include "stand_in.h"

using namespace stand_in;

#define JAXGLMM_HANDLERS(each)                                                                     \
  each(group_total) each(fused_pass) each(group_modes) each(group_push) each(group_moments)        \
      each(group_effects) each(pair_product) each(pair_outer) each(row_sums) each(sampled_product) \
          each(nested_pass) each(shifted_pass)
#define JAXGLMM_DECLARE(name) extern "C" XLA_FFI_Error* jaxglmm_##name(XLA_FFI_CallFrame*);
JAXGLMM_HANDLERS(JAXGLMM_DECLARE)
extern "C" const char* jaxglmm_handlers();

namespace {

constexpr int64_t kBlock = 480, kColumns = 5, kLong = kBlock / 32, kParents = 40, kLogit = 1,
                  kNegativeBinomial = 5;
constexpr int64_t kFamilies = 7, kGamma = 6;
constexpr int32_t kSizes[] = {1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32};
constexpr int64_t kShort = std::size(kSizes), kSlots = (kShort + 1) * kBlock;

// Numbers between -1 and 1 that are the same everywhere.
struct Random {
  uint64_t state = 88172645463325252ull;
  double operator()() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<double>(state >> 11) * 0x1p-52 - 1.0;
  }
} draw;

std::map<std::string, Handler> handlers() {
  std::map<std::string, Handler> all;
#define JAXGLMM_ADD(name) all["jaxglmm_" #name] = jaxglmm_##name;
  JAXGLMM_HANDLERS(JAXGLMM_ADD)
  return all;
}

struct Case {
  std::string handler, what;
  std::vector<Array> operands, results;
  std::vector<Attribute> attributes;
};

using Shape = std::vector<int64_t>;
Array f64(const Shape& shape) { return {XLA_FFI_DataType_F64, shape}; }
template <typename Next>
Array numbers(const Shape& shape, const Next& next) {
  return {shape, double{}, next};
}
template <typename Next>
Array integers(const Shape& shape, const Next& next) {
  return {shape, int32_t{}, next};
}
Array integers(const std::vector<int32_t>& of) {
  return integers({static_cast<int64_t>(of.size())}, [&](int64_t i) { return of[i]; });
}
Attribute attribute(const char* name, int64_t value) { return {name, XLA_FFI_DataType_S64, value}; }

// Rows in tile storage: a block of each class, then long groups of several pieces; T is the type they are
// stored in.
template <typename T>
struct Rows {
  int64_t effects, groups = 0;
  std::vector<int32_t> group_at = std::vector<int32_t>(kSlots, -1), parent_of, piece;
  std::vector<Array> vectors;  // y, weight, offset, z, start
  Array X, sizes = integers({kShort}, [](int64_t b) { return kSizes[b]; });

  template <typename Next>
  static Array stored(const Shape& shape, const Next& next) {
    return {shape, T{}, next};
  }
  Array& y() { return vectors[0]; }

  Rows(int64_t S, int64_t family)
      : effects(S), X(stored({kSlots, kColumns}, [](int64_t) { return draw(); })) {
    const double more = family == kGamma ? 1.0 : 0.0;
    vectors = {stored({kSlots}, [&](int64_t) { return more + (draw() > 0 ? 1.0 : 0.0); }),
               stored({kSlots}, [](int64_t) { return std::floor(2 + 2 * draw()); }),
               stored({kSlots}, [](int64_t) { return 0.3 * draw(); }),
               stored({S, kSlots}, [](int64_t) { return 1 + 0.5 * draw(); }),
               stored({S, kSlots}, [](int64_t) { return 0.0; })};
    for (int64_t b = 0; b < kShort; ++b)
      for (int64_t lane = 0, lanes = kBlock / kSizes[b]; lane < lanes; ++lane)
        add_group(b * kBlock + lane, lane * kParents / lanes);
    for (int64_t k = 0; k < kLong; ++k) {
      piece.push_back(static_cast<int32_t>(k / 4));  // three long groups of four pieces, and one of three
      if (k % 4 == 0) add_group(kShort * kBlock + k, k * kParents / kLong);
    }
  }

 private:
  void add_group(int64_t slot, int64_t parent) {
    group_at[slot] = static_cast<int32_t>(groups++), parent_of.push_back(static_cast<int32_t>(parent));
  }
};

struct Nodes {
  Array points, log_weights;
  Nodes(int64_t effects, int64_t count)
      : points(numbers({effects, count},
                       [&](int64_t i) { return count == 1 ? 0.0 : (i + i / count) % 3 - 1.0; })),
        log_weights(numbers({count}, [](int64_t) { return -0.5; })) {}
};

Array one_number(int32_t value) {
  return integers(Shape{}, [&](int64_t) { return value; });
}

Array unknowns(int64_t columns, int64_t effects) {  // (beta, the lower triangle of Lambda, log phi)
  const double factor[] = {0.7, 0.2, -0.1, 0.5, 0.3, 0.4};
  const int64_t triangle = effects * (effects + 1) / 2;
  const double wide[] = {0.7, 0.2, 0.5};
  return numbers({columns + triangle + 1}, [&](int64_t i) {
    return i < columns               ? 0.1
           : i == columns + triangle ? 0.2
           : effects == 2            ? wide[i - columns]
                                     : factor[i - columns];
  });
}

template <typename T>
void add_passes(std::vector<Case>& cases, int64_t family, int64_t effects, int64_t count) {
  Rows<T> rows(effects, family);
  const Nodes nodes(effects, count);
  const int64_t U = effects * (effects + 1) / 2 + 1, m = kColumns + U, S = effects;
  const Array pieces = integers(rows.piece), psi = unknowns(kColumns, S), own = unknowns(0, S);
  const Array& y = rows.vectors[0];
  const Array &weight = rows.vectors[1], &offset = rows.vectors[2], &z = rows.vectors[3],
              &start = rows.vectors[4];
  const std::string what = " family " + std::to_string(family) + ", " + std::to_string(S) + " effects, " +
                           std::to_string(count) + " nodes, float" + std::to_string(8 * sizeof(T));
  const std::vector<Attribute> attributes = {attribute("block", kBlock), attribute("determinant", 1),
                                             attribute("family", family)};
  std::vector<Attribute> with_second = attributes;
  with_second.push_back(attribute("second", 1));
  cases.push_back({"fused_pass",
                   what,
                   {rows.X, y, weight, offset, z, start, rows.sizes, pieces, psi, nodes.points,
                    nodes.log_weights, one_number(count)},
                   {f64({}), f64({m}), f64({m, m}), f64({S, kSlots})},
                   with_second});
  const std::vector<Array> groups = {
      offset,           y, weight, z, start, rows.sizes, pieces, own, nodes.points, nodes.log_weights,
      one_number(count)};
  cases.push_back({"group_modes",
                   what,
                   groups,
                   {f64({}), f64({kSlots}), f64({U}), f64({S, kSlots}), f64({U - 1, kSlots})},
                   attributes});
  std::vector<Array> with_direction = groups;
  with_direction.push_back(offset), with_direction.push_back(unknowns(0, S));
  cases.push_back({"group_push", what, with_direction, {f64({kSlots}), f64({U})}, attributes});
}

template <typename T>
void add_posteriors(std::vector<Case>& cases, int64_t family) {
  Rows<T> rows(1, family);
  const Array pieces = integers(rows.piece), level = integers(rows.group_at), psi = unknowns(kColumns, 1);
  const auto row = [&](const Array& of) {  // (1, slots) as (slots,)
    Array flat = of;
    flat.shape = {kSlots};
    return flat;
  };
  std::vector<Array> operands = {rows.X,
                                 rows.vectors[0],
                                 rows.vectors[1],
                                 rows.vectors[2],
                                 row(rows.vectors[3]),
                                 row(rows.vectors[4]),
                                 rows.sizes,
                                 pieces,
                                 level,
                                 psi};
  const std::vector<Attribute> attributes = {attribute("block", kBlock), attribute("family", family)};
  const std::string what = " family " + std::to_string(family) + ", float" + std::to_string(8 * sizeof(T));
  const int64_t m = kColumns + 2, G = rows.groups;
  std::vector<Array> effects = operands;
  effects.push_back(numbers({m, m}, [&](int64_t i) { return i % (m + 1) ? 0.01 : 0.1; }));
  cases.push_back({"group_effects", what, effects, {f64({G, 3})}, attributes});
  for (int64_t nodes : {1, 5}) {
    std::vector<Array> moments = operands;
    moments.push_back(numbers({nodes}, [&](int64_t k) { return k - (nodes - 1) / 2.0; }));
    moments.push_back(numbers({nodes}, [](int64_t) { return -0.5; }));
    cases.push_back({"group_moments", what, moments, {f64({G, 3}), f64({G, nodes})}, attributes});
  }
}

template <typename T>
void add_nested(std::vector<Case>& cases, int64_t family, int64_t columns, int64_t effects) {
  Rows<T> rows(effects, family);
  const int64_t H = kParents, G = rows.groups, J = 3, U = effects * (effects + 1) / 2 + 1;
  const Array pieces = integers(rows.piece), group = integers(rows.group_at),
              parent = integers(rows.parent_of);
  const Array X = Rows<T>::stored({kSlots, columns}, [](int64_t) { return draw(); });
  const Array shift = numbers({H}, [](int64_t) { return 0.2 * draw(); });
  const std::vector<Attribute> attributes = {attribute("block", kBlock), attribute("family", family)};
  const std::string what = " family " + std::to_string(family) + ", " + std::to_string(columns) +
                           " columns, " + std::to_string(effects) + " effects, float" +
                           std::to_string(8 * sizeof(T));
  const auto& v = rows.vectors;
  if (effects == 1)
    cases.push_back(
        {"nested_pass",
         what,
         {X, v[2], v[0], v[1], rows.sizes, pieces, group, parent, numbers({G}, [](int64_t) { return 0.0; }),
          shift, numbers({H}, [](int64_t) { return 0.3; }),
          numbers({H}, [](int64_t) { return 0.1 * draw(); }),
          numbers({2}, [](int64_t k) { return 0.7 - 0.5 * k; })},
         {f64({}), f64({columns + 2}), f64({columns + 2, columns + 2}), f64({G}), f64({G}),
          f64({H, 12 + 3 * columns})},
         attributes});
  const Nodes nodes(effects, 3);
  const int64_t m = columns + U;
  cases.push_back({"shifted_pass",
                   what,
                   {X, v[0], v[1], v[2], v[3], v[4], rows.sizes, pieces, group, parent, shift,
                    numbers({J}, [](int64_t j) { return 0.1 * j; }),
                    numbers({J, H}, [](int64_t) { return 1 + 0.1 * draw(); }), unknowns(columns, effects),
                    nodes.points, nodes.log_weights, one_number(3)},
                   {f64({}), f64({m}), f64({m, m}), f64({effects, kSlots}), f64({H, J, m + 2})},
                   attributes});
}

// Levels of 0 to 12 entries each, of which the last ones are padding that no pointer reaches.
void add_pairs(std::vector<Case>& cases, int64_t rows, int64_t inner, int64_t columns) {
  constexpr int64_t kLevels = 2000, kOthers = 300, kPadding = 7;
  std::vector<int32_t> start = {0};
  for (int64_t g = 0; g < kLevels; ++g) start.push_back(start.back() + static_cast<int32_t>(g * 7 % 13));
  const int64_t P = start.back() + kPadding;
  const Array starts = integers(start), none = integers(std::vector<int32_t>{});
  const Array other = integers({P}, [](int64_t) { return std::floor((draw() + 1) / 2 * kOthers); });
  const Array place = integers({P}, [&](int64_t j) { return (j * 101) % P; });
  const auto any = [](const Shape& shape) { return numbers(shape, [](int64_t) { return draw(); }); };
  const std::string what =
      " blocks " + std::to_string(rows) + " x " + std::to_string(inner) + ", " + std::to_string(columns);
  for (int64_t transposed : {0, 1})
    for (const Array& places : {none, place})
      cases.push_back({"pair_product",
                       what,
                       {any({P, transposed ? inner : rows, transposed ? rows : inner}), starts, other, places,
                        any({kOthers, inner, columns})},
                       {f64({kLevels, rows, columns})},
                       {{"transposed", XLA_FFI_DataType_PRED, transposed}}});
  cases.push_back({"pair_outer",
                   what,
                   {starts, other, any({kLevels, rows, columns}), any({kOthers, inner, columns})},
                   {f64({P, rows, inner})},
                   {}});
  for (const Array& places : {none, place})
    for (int64_t right : {int64_t{0}, inner})
      cases.push_back({"row_sums",
                       what,
                       {any({rows, P}), any({right, P}), starts, places},
                       {f64({kLevels, rows, right ? right : 1})},
                       {}});
  cases.push_back(
      {"sampled_product", what, {any({P}), starts, other, any({kOthers, kOthers})}, {f64({P})}, {}});
}

void add_totals(std::vector<Case>& cases) {
  const auto sizes = integers({3, 7}, [](int64_t i) { return kSizes[i % std::size(kSizes)]; });
  for (bool narrow : {false, true}) {
    const Shape shape = {3, 7, 480 * 8};
    const auto next = [](int64_t) { return draw(); };
    cases.push_back({"group_total",
                     narrow ? " float32" : " float64",
                     {narrow ? Array(shape, float{}, next) : Array(shape, double{}, next), sizes},
                     {{narrow ? XLA_FFI_DataType_F32 : XLA_FFI_DataType_F64, shape}},
                     {}});
  }
}

// Each operand with an entry more and less on each axis, without axes, and of integers out of range: refused
// or computed.
int64_t misfits(const Case& of, Handler handler) {
  int64_t refused = 0;
  const auto attempt = [&](size_t which, const Array& with) {
    std::vector<Array> operands = of.operands, results;
    operands[which] = with;
    for (const Array& shape : of.results) results.emplace_back(shape.type, shape.shape);
    refused += !call(handler, operands, results, of.attributes, 2).empty();
  };
  for (size_t i = 0; i < of.operands.size(); ++i) {
    const Array& v = of.operands[i];
    const auto like = [&](const Shape& shape) {
      const Array changed(v.type, shape);
      std::fill_n(changed.at<char>(), changed.bytes(), 0);
      std::copy_n(v.at<char>(), std::min(changed.bytes(), v.bytes()), changed.at<char>());
      return changed;
    };
    for (size_t axis = 0; axis < v.shape.size(); ++axis)
      for (int64_t extent : {int64_t{0}, v.shape[axis] - 1, v.shape[axis] + 1}) {
        Shape shape = v.shape;
        shape[axis] = std::max<int64_t>(extent, 0);
        attempt(i, like(shape));
      }
    attempt(i, like({}));
    if (v.type != XLA_FFI_DataType_S32 || !v.count()) continue;
    for (int32_t bad : {-1, 0, 1 << 30, INT32_MIN})
      for (int64_t at : {int64_t{0}, v.count() / 2, v.count() - 1}) {
        const Array changed = like(v.shape);
        changed.at<int32_t>()[at] = bad;
        attempt(i, changed);
      }
  }
  return refused;
}

}  // namespace

int main() {
  std::vector<Case> cases;
  add_totals(cases);
  for (int64_t family = 0; family < kFamilies; ++family) {
    add_passes<double>(cases, family, 1, 3), add_posteriors<double>(cases, family);
    add_nested<double>(cases, family, kColumns, 1);
  }
  for (int64_t effects : {1, 2, 3}) add_passes<float>(cases, kNegativeBinomial, effects, 1);
  for (int64_t effects : {2, 3})
    add_passes<double>(cases, kLogit, effects, 3), add_nested<double>(cases, kLogit, 3, effects);
  add_posteriors<float>(cases, kLogit), add_nested<float>(cases, kNegativeBinomial, kColumns, 1);
  add_nested<double>(cases, kLogit, 0, 1);
  for (int64_t size : {1, 2, 3}) add_pairs(cases, size, size % 3 + 1, size == 1 ? 1 : 6);

  const std::map<std::string, Handler> all = handlers();
  std::map<std::string, int64_t> reached, threads;
  bool good = true;
  for (const Case& c : cases) {
    const Handler handler = all.at("jaxglmm_" + c.handler);
    const int64_t before = threads_started;
    good &= agree(c.handler + c.what, handler, c.operands, c.results, c.attributes);
    threads["jaxglmm_" + c.handler] += threads_started - before;
    if (reached["jaxglmm_" + c.handler]++ == 0)
      std::printf("  %d misfits refused\n", static_cast<int>(misfits(c, handler)));
  }
  std::istringstream names(jaxglmm_handlers());
  for (std::string name; names >> name;) {
    std::printf("%s: %d cases, %d threads\n", name.c_str(), static_cast<int>(reached[name]),
                static_cast<int>(threads[name]));
    good &= threads[name] > 0;
  }
  return good ? 0 : 1;
}
