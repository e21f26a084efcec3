-- depends: 0031_beginnings
-- A generation whose ingress and engine are gone is drawn again, by what its rows say, a bounded number of times.
set role onbrand_owner;

alter table app.generations add column num_lost integer not null default 0 check (num_lost >= 0);
call app.keep_no_statistics('app.generations');
grant update (num_lost) on app.generations to brand_system;

-- Whoever has it drawn again says the brand's share to the engine, as its ingress would have.
grant select on app.brand_limits to brand_system;
create policy system_select on app.brand_limits for select to brand_system using (exists (
  select 1 from app.generations g where g.brand_id = brand_limits.brand_id and g.status in ('pending', 'running')));

reset role;
